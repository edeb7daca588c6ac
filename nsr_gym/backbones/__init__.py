"""Frozen networks whose linear maps adapters modify."""
