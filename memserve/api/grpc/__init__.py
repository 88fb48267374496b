"""The gRPC edge. `server.py` puts the services on a port. `call.py` has what every RPC does first and last.

`errors.py` maps facts to statuses.
"""
