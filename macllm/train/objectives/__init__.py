"""Objectives: pure functions (model, batch) -> (numerator, denominator, metrics).

The loop divides once per step, so the loss does not depend on the split into micro-batches.
"""
