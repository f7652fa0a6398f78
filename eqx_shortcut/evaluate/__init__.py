"""Distances between sets of images, in features that say what they are."""

from .features import Extracted, Features, pixels
from .frechet import frechet_distance
from .moments import Moments, moments
from .neighbours import nearest_distances

__all__ = [
    "Extracted",
    "Features",
    "Moments",
    "frechet_distance",
    "moments",
    "nearest_distances",
    "pixels",
]
