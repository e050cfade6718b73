"""Objectives: pure functions (model, batch) -> (numerator, denominator, metrics).

Never a mean: the loop divides once for a whole step, so that a loss does not depend on how its rows are
spread over micro-batches.
"""
