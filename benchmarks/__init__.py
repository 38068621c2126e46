"""Measurements, not tests: `python -m benchmarks.TOPIC` prints a table and, as its last line, one JSON object of the same figures."""
