"""Errors of data."""


class DataError(ValueError):
    """Data that cannot be trained on: says which file and index, the rule, and the remedy."""


class BadImage(ValueError):
    """One image that cannot be used. The message is the reason alone: who asked for the image knows its file and index."""
