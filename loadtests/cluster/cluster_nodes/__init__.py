"""Workers on a Ray cluster of several hosts: shared KV, a node cut off, the head killed, secrets kept."""
