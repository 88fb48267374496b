"""What the measurements share: engines, stacks, models, servers, figures."""
