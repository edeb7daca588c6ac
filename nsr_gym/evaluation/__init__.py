"""Whole comparisons: rollouts, cells, results, calibration."""
