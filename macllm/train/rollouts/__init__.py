"""Rollouts: answers sampled from the model in training, as tokens with log-probabilities."""
