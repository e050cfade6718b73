"""Fused QK norm, RoPE and transposition, between projections and attention."""
