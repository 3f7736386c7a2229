"""Datasets handed to others: named snapshots, and a hub that holds them."""
