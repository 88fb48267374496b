"""The registry Redis: small, never evicted. Clients with bounded waits, and the leases of live workers."""
