"""Measuring models: how fast they are here, and how well they do."""
