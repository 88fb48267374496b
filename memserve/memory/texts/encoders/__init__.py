"""Models that read texts: the embedders, here in numpy or behind an endpoint, and the reranker.

`embedder.py` has the protocol, `cached.py` is what the memory calls, and `bert.py` is the arithmetic.
"""
