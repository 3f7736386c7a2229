"""Prompts -> groups -> shards -> catalog -> batches: the data half of Group Preference Optimization."""

__version__ = "0.1.0"
