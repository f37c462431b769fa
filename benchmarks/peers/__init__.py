"""Benchmarks beside other systems of the field, and short baselines of them."""
