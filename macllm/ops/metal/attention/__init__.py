"""Attention: tiles of many queries, few queries over a cache, and the gradients."""
