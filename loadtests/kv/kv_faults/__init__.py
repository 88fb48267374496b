"""`python -m loadtests.kv_faults`: what Redis, its entries and a killed worker do to requests.

`redis_faults.py` and `worker.py` are the faults, `__main__.py` the order and the table.
"""
