"""Data: sets of labelled images, and the Grain pipeline that feeds them."""

from .images import CIFAR10, DataError, Digits, FashionMNIST, Images, Source
from .pipeline import batches, prepare

__all__ = ["CIFAR10", "DataError", "Digits", "FashionMNIST", "Images", "Source", "batches", "prepare"]
