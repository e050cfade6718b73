"""Drawing a token: parameters, their defaults and ranges, constraints, the sampler."""
