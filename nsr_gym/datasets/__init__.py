"""Data for tasks: digits that ship with scikit-learn, and the user's own arrays."""

from nsr_gym.datasets.arrays import pool_from_arrays, task_from_arrays, task_from_datasets
from nsr_gym.datasets.digits import digits_pool
from nsr_gym.datasets.digits_parts import DigitsParts, digits_parts
from nsr_gym.datasets.vision import load_torchvision

__all__ = [
    "DigitsParts",
    "digits_parts",
    "digits_pool",
    "load_torchvision",
    "pool_from_arrays",
    "task_from_arrays",
    "task_from_datasets",
]
