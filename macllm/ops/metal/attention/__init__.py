"""Attention: prefill (many queries), decode (few queries over a cache), and gradients."""
