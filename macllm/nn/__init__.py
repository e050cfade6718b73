"""Transformers: specs, the modules that run them, caches, and transforms over the module tree.

Shape letters, here and in `ops/`: B batch, L new positions, S all positions, D model, H query heads,
K key/value heads, Dh head, F hidden, V vocabulary, E experts, T experts chosen for a token.
Arrays of heads are (B, H, L, Dh).
"""
