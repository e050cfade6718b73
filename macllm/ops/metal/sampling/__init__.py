"""Sampling of a token from logits."""
