"""Measurements of memserve: load, latency, recall, and the demo model itself.

Each is run with `python -m loadtests.<name>`, whichever folder it lies in, and teaches itself with `--help`.
"""

from pathlib import Path

# Only for the command line: code imports a module under its folder.
__path__ += [str(folder) for folder in sorted(Path(__file__).parent.iterdir()) if folder.is_dir()]
