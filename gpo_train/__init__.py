"""Batches -> policy: the training half of Group Preference Optimization. It imports gpo_data, never the reverse."""
