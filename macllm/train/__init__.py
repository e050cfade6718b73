"""Training: a config, rows, an objective and one loop."""
