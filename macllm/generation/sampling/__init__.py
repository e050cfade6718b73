"""Drawing a token: parameters, their defaults and ranges, penalties, constraints, the sampler."""
