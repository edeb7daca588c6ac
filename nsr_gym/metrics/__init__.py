"""Continual-learning metrics: accuracy matrices, recurring streams, recovery."""
