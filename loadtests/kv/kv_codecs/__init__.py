"""`python -m loadtests.kv_codecs`: what the codecs of KV in Redis save and cost.

`methods.py` measures lengths and speeds, `loads.py` wires, `kernels.py` vLLM's layouts, `answers.py` quality.
"""
