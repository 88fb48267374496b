"""The gRPC edge: `server.py` puts the services on a port, `call.py` is what every RPC does first and last.

`errors.py` maps refusals to statuses.
"""
