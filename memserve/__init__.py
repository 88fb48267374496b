"""memserve: language models that remember.

One gRPC gateway over parametric (adapters), activation (KV) and vector (text) memory, on Ray and vLLM.
"""

__version__ = "0.1.0"
