"""Batched low-rank adapters: data, training, measuring."""
