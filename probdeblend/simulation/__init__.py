"""Blends of known truth."""
