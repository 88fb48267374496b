"""`python -m loadtests.supervision`: `kill -9` of the parts of `memserve up`.

`parts.py` is what can be killed, `kills.py` the killing, `asking.py` the requests meanwhile.
"""
