"""Child processes: tied to their parent, marked, restarted and swept. Their ports are kept for them."""
