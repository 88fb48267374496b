"""The steps of a request, in the order in which `gateway/pipeline.py` takes them.

2 is `check.py` and `resolve.py`, 3 `recall.py`, 4 `prompt.py`, 5 `lookup.py`, 6 `route.py`, 7 and 8
`stream.py`. Step 1, the accepted call, is the edge's: `memserve/api`.
"""
