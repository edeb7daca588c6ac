"""Data for tasks: digits that ship with scikit-learn, image benchmarks, and the user's own."""

from nsr_gym.datasets.arrays import pool_from_arrays, task_from_arrays, task_from_datasets
from nsr_gym.datasets.cache import FeatureCache, FeatureKey
from nsr_gym.datasets.cifar100 import cifar100_pool
from nsr_gym.datasets.digits import digits_pool
from nsr_gym.datasets.digits_parts import DigitsParts, digits_parts
from nsr_gym.datasets.downloads import fetch
from nsr_gym.datasets.five import five_datasets_pool
from nsr_gym.datasets.image_pools import loaded_counts
from nsr_gym.datasets.image_tasks import ImageTask, ImageTransform
from nsr_gym.datasets.manifests import class_orders, five_manifests
from nsr_gym.datasets.packed_files import tiny_imagenet_32
from nsr_gym.datasets.sources import data_root
from nsr_gym.datasets.streams_in import ImportedStream, from_arrays, from_avalanche
from nsr_gym.datasets.vision import load_torchvision

__all__ = [
    "DigitsParts",
    "FeatureCache",
    "FeatureKey",
    "ImageTask",
    "ImageTransform",
    "ImportedStream",
    "cifar100_pool",
    "class_orders",
    "data_root",
    "digits_parts",
    "digits_pool",
    "fetch",
    "five_datasets_pool",
    "five_manifests",
    "from_arrays",
    "from_avalanche",
    "load_torchvision",
    "loaded_counts",
    "pool_from_arrays",
    "task_from_arrays",
    "task_from_datasets",
    "tiny_imagenet_32",
]
