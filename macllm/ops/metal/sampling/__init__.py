"""Draws of a token from logits."""
