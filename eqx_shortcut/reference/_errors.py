"""Errors of reading the reference's files."""


class ReferenceCheckpointError(ValueError):
    """A checkpoint of the reference that cannot be used: says what was found, what is asked for, and what to do."""
