"""Engines: a thread or a child process that owns a model."""
