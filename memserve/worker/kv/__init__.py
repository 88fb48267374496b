"""vLLM's KV offloading with Redis behind it: connector, tiers, copies, metrics."""
