"""The self-test: facts of this machine, and Metal kernels checked and timed on it."""
