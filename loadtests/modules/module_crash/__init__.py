"""`python -m loadtests.module_crash`: `kill -9` while modules are published, promoted and deleted.

`run.py` is the client, `killer.py` the kills, `oracle.py` what must be, `sweeping.py` the end.
"""
