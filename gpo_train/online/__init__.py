"""The policy draws what it is trained on, iteration by iteration."""
