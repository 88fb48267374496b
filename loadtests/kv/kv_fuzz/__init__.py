"""`python -m loadtests.kv_fuzz`: made-up and damaged bytes for the reader and the codecs.

`stored.py`, `reader.py` and `chunks.py` are the checks, `inputs.py` their inputs, `fuzzers.py` the processes.
"""
