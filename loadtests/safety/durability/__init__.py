"""`python -m loadtests.durability`: what memserve has acknowledged, through kills, full disks and power cuts.

`rig.py` is the memserve on a small disk, `__main__.py` the blows and what must be found after each of them.
"""
