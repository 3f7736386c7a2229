"""Policy against base on held-out prompts, the same seeds."""
