"""The load tool behind `memserve bench`: requests are scheduled ahead, sent on time, and judged.

`scenario.py` reads what to send, `workload.py` plans it, `generator.py` sends it, `figures.py` counts.
"""
