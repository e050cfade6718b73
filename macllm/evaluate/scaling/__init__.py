"""Scaling laws: a model's loss as a function of its parameters and training tokens, fitted to runs."""
