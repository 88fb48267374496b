"""The registry Redis: clients with bounded waits, and the leases of the workers that live."""
