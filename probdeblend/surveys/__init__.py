"""Isolated real galaxies: cut, judged, kept, blended and injected."""
