"""Models by Hugging Face name or by a store's URL, fetched once for a machine into the data directory."""
