"""Constitutional AI (arXiv:2212.08073): answers revised and compared by the model itself."""
