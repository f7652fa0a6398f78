"""What errors of others say, for a sentence of ours."""


def first_line(error: Exception, most: int | None = None) -> str:
    """The first line of what an error says, at most `most` characters, or the name of its class if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:most]
