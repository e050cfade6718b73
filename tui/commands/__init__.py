"""Slash commands, one file per topic."""
