"""Models of many architectures, with random weights, made on the spot: each is served as transformers
computes it, or refused at once.
"""
