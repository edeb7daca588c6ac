"""Exact environments: small tables instead of training, NumPy only."""
