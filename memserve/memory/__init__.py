"""The memories of a tenant, one shape each: parametric (modules), activation (KV prefixes), vector (text in
Milvus). Knows neither gRPC nor vLLM nor torch.
"""
