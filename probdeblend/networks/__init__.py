"""Modules whose ``forward`` returns a distribution, or logits."""
