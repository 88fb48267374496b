"""The model that is served: its directory read without torch, its chat template and its tokenizer.

What cannot be served is refused here, before anything starts.
"""
