"""What measures the package: each benchmark runs as ``python -m benchmarks.NAME``."""
