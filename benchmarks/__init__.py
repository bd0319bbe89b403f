"""Measurements of whole commands, run by hand: `python -m benchmarks.NAME` from the repository's root."""
