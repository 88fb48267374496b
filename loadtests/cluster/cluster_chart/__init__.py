"""`python -m loadtests.cluster_chart`: the Helm chart's pods, run as a kubelet would run them.

`chart.py` renders, `images.py` reads the Dockerfile, `release.py` runs it, `asking.py` and `asker.py` are the
load, `reach.py` and `listening.py` the wires, `rollouts.py` the replacements.
"""
