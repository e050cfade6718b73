"""Quantized matrix-vector products for few rows: linear layers, adapters and experts."""
