"""`python -m loadtests.module_hostile`: hostile modules, hostile calls, and KV across versions.

`uploads.py` and `calls.py` are the cases, `version_kv.py` the KV, `stack.py` what is attacked.
"""
