"""`python -m loadtests.gateway_overhead`: the gateway's processor time, beside bare relays of the same bytes.

`worker.py` is the fake worker, `relay.py` the two relays, `client.py` who asks; each is a process.
"""
