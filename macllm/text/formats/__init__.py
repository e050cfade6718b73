"""Formats of reasoning and tool calls in model output, as one table."""
