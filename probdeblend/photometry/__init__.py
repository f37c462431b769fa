"""Images in; sources, noise and apertures out."""
