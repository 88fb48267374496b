"""Models in other files than safetensors become model directories: GGUF, read by transformers in a process of
its own.
"""
