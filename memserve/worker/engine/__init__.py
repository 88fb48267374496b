"""One vLLM engine: started, asked, proven."""
