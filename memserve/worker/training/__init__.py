"""Modules made out of modules, in Ray tasks of their own: `compose.py` in the order of the work, the parts
beside it.
"""
