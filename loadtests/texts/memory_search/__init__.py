"""`python -m loadtests.memory_search`: how long a search takes with many memories, alone and beside writes.

`corpus.py` makes memories, `whole.py` measures the vector memory, `halves.py` its local index alone, and
`peers.py` what other people's stores do with the same data.
"""
