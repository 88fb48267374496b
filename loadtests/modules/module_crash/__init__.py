"""`python -m loadtests.module_crash`: `kill -9` while modules are published, promoted and deleted.

`run.py`: the client, `killer.py` the kills, `oracle.py` and `states.py` what must be, `sweeping.py` a sweep.
"""
