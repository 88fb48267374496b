"""The steps of a request, in the order in which `gateway/pipeline.py` takes them."""
