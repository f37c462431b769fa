"""From an image to a posterior."""
