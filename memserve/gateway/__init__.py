"""The gateway: `pipeline.py` is a request's way through it; read that first. `memserve/api` puts it on
gRPC.
"""
