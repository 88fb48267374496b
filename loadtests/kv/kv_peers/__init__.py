"""`python -m loadtests.kv_peers`: memserve's Redis tier against LMCache and vLLM's file-system tier.

`arms.py` is what is compared, `rounds.py` how.
"""
