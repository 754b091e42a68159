"""Training: from a config to a finished run and its result."""
