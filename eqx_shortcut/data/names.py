"""Names of classes: ImageNet's, the order of names, and the search for one among them."""

import difflib
import functools
import importlib.resources
import re
from collections.abc import Iterable, Sequence


@functools.cache
def imagenet() -> tuple[str, ...]:
    """A short English name for each of the 1,000 classes of ImageNet-1k, in order of their labels, no two alike."""
    file = importlib.resources.files("eqx_shortcut.data") / "imagenet_classes.txt"
    return tuple(file.read_text(encoding="utf-8").splitlines())


def display_names(recorded: Sequence[str], classes: int) -> tuple[str, ...]:
    """Names to choose classes by: those of the data, or ImageNet's where they are its identifiers, or 1,000 have none.

    Empty if there are none.
    """
    identifiers = all(re.fullmatch(r"n\d{8}", name) for name in recorded)
    return imagenet() if classes == 1000 and identifiers else tuple(recorded)


def find(names: Sequence[str], query: str) -> int:
    """The index of the one name that equals the query, or else of the only one that contains it as words.

    Case, spaces and punctuation do not count. Raises ValueError with the candidates if there are several, with the nearest
    names if there is none.
    """
    wanted, split = _words(query), [_words(name) for name in names]
    exact = [i for i, words in enumerate(split) if "".join(words) == "".join(wanted)]
    matches = exact or [i for i, words in enumerate(split) if f" {' '.join(wanted)} " in f" {' '.join(words)} "]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ValueError(f"{query!r} is in several names of classes: write one of {_listed(names[i] for i in matches)}")
    by_text = {name.casefold(): name for name in names}
    near = difflib.get_close_matches(query.casefold(), by_text, n=5, cutoff=0)
    raise ValueError(f"no class is called {query!r}: the nearest names are {_listed(by_text[text] for text in near)}")


def natural_sorted(names: Iterable[str]) -> list[str]:
    """Names in the order in which people count: 2 before 10."""

    def key(name: str) -> tuple[list[tuple[bool, int, str]], str]:
        parts = re.findall(r"[0-9]+|[^0-9]+", name)
        return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts], name

    return sorted(names, key=key)


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first names, in one line whatever they hold: bytes of no encoding, ends of lines."""
    told = ", ".join("".join(c if c.isprintable() else repr(c)[1:-1] for c in name) for name in names[:most])
    return f"{told}, ... ({len(names):,})" if len(names) > most else told


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.casefold())


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
