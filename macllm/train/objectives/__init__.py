"""Objectives, one per file; each implements `macllm.train.contract.Objective`."""
