"""Caches: one state per layer over a batch of sequences."""
