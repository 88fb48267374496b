"""The workers as Ray Serve replicas: started, kept, fitted to the machine, replaced, drained; nodes of a Ray
cluster.
"""
