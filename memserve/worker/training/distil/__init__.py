"""Memories distilled into a module: `distil.py` in the order of the work, the parts beside it.

A student is what is trained. `students.py` has one for each kind that can be distilled.
"""
