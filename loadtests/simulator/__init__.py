"""A discrete-event simulator of gateways, waiting rooms, engines and caches. The policies are memserve's own.

It imports `memserve.policy` and `memserve.domain` only.
"""
