"""The gateway: `pipeline.py` is a request's way (read it first), `service.py` and `server.py` put it on gRPC.

No torch, no vLLM and no Ray here.
"""
