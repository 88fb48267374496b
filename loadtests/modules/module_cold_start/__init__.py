"""`python -m loadtests.module_cold_start`: what an adapter costs where it is not ready.

`places.py`, `registered.py` and `rotation.py` are the three measurements.
"""
