"""`python -m loadtests.cluster_tls`: every wire of memserve over TLS, between hosts of network namespaces.

`rig.py` is the hosts, `worker.py` a worker without an engine, `probe.py` tries each wire, `rotation.py`
changes certificates while `load.py` asks, `cost.py` is what TLS costs.
"""
