"""The self-test: what this machine is, which kernels are right on it, and which of them pay."""
