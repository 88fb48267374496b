"""`python -m loadtests.attack`: every item that memserve 0.1.0 was attacked with, against a running memserve.

`world.py` is what is attacked, each other file a group of attacks, `__main__.py` the order and the table.
"""
