"""`python -m loadtests.neighbours`: what one tenant's floods do to another tenant's calls.

`quiet.py` and `noisy.py` are the two tenants, `__main__.py` the comparison.
"""
