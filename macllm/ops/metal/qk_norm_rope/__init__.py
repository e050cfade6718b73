"""Norm of heads, rotary positions and the order of axes, between projections and attention."""
