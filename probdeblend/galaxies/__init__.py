"""Lone real galaxies: cut out of mosaics or taken from elsewhere, kept in libraries, and blended."""

__all__: list[str] = []
