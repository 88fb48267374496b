"""A worker: one vLLM engine in a Ray Serve replica, its own gRPC data plane, and the KV tier that vLLM loads.

The only place, beside `demo`, that imports vLLM and torch.
"""
