"""`python -m loadtests.module_crash`: `kill -9` while modules are published, promoted and deleted.

`run.py` is the client and what it compares, `sweeping.py` the end.
"""
