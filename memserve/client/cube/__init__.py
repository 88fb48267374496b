"""MemCubes: a namespace with its memories and modules in one file that can be checked. No call of a gateway
is made here: `client/_async/cubes.py` has those.
"""
