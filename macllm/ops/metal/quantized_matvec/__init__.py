"""Products of few rows with packed matrices: linear layers, adapters and experts."""
