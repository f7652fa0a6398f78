"""Distances between sets of images, in features that say what they are."""

from .collected import Collected, collect
from .comparison import compare
from .features import Custom, Extracted, Features, Pixels, pixels
from .frechet import frechet_distance
from .inception_score import inception_score
from .kernel import kernel_distance, maximum_mean_discrepancy
from .moments import Gaussian, Moments, moments
from .neighbours import PRDC, nearest_distances, prdc
from .sliced import half_circle, sliced_wasserstein
from .statistics import Statistics, read_images, read_statistics, write_statistics

__all__ = [
    "PRDC",
    "Collected",
    "Custom",
    "Extracted",
    "Features",
    "Gaussian",
    "Moments",
    "Pixels",
    "Statistics",
    "collect",
    "compare",
    "frechet_distance",
    "half_circle",
    "inception_score",
    "kernel_distance",
    "maximum_mean_discrepancy",
    "moments",
    "nearest_distances",
    "pixels",
    "prdc",
    "read_images",
    "read_statistics",
    "sliced_wasserstein",
    "write_statistics",
]
