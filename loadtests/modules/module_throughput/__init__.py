"""`python -m loadtests.module_throughput`: tokens a second over 8 LoRA adapters, memserve beside vLLM alone.

`load.py` is what is asked, `arms.py` what is compared.
"""
