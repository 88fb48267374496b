"""Measurements of memserve: load, latency, recall, and the demo model itself.
Each module is run with `python -m loadtests.<name>` and teaches itself with `--help`."""
