"""A kubelet for tests: rendered Kubernetes objects run as processes in network namespaces of this machine.

Pure: `objects.py`, `environment.py`, `probes.py`, `services.py`, `policies.py`, `rollout.py`.
"""
