"""`python -m loadtests.module_hostile`: hostile modules, hostile calls, and KV across versions.

`calls.py` are the calls, `stack.py` what they are made on, `__main__.py` the verdicts.
"""
