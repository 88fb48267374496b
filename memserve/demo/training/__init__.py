"""Parts of the demo's training: batches, the network, and the files that come out. `train.py` and its
neighbours are the commands.
"""
