"""Evaluation: a model's speed on this machine, and the quality of its answers."""
