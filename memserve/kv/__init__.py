"""Activation memory: block keys, the value codec, the Redis chunk store and the index of who holds what.

Knows neither vLLM nor torch.
"""
