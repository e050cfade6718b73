"""Training runs: a registry of their folders, their state, and a process that restarts them."""
