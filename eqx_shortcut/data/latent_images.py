"""Images as the latents of an autoencoder, as a source: from a cache that is filled first, or encoded in every step."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, ClassVar

import jax
import numpy as np
import tyro
from jaxtyping import Array, Float

from .. import ranges, storage
from ..cli import Place
from ..ranges import Count
from .errors import DataError
from .source import Rows
from .sources import ImageSource

if TYPE_CHECKING:
    from ..pretrained.autoencoder import Autoencoder
    from .identity import Identity

SHARD = 8192
"""Images in a file of a cache that a run fills."""

LATENT = (32, 32, 4)
"""Shape of the latents of Stable Diffusion's autoencoder for images of 256 x 256."""


@dataclasses.dataclass(frozen=True)
class LatentImages(ranges.Checked):
    """Latents of images: read from a cache, into which missing ones are encoded first, or without a cache encoded each step."""

    images: Annotated[
        Annotated[None, tyro.conf.subcommand("none")] | ImageSource,  # pyright: ignore[reportInvalidTypeForm]
        tyro.conf.arg(name="data"),
    ] = None
    """Where the images come from; none is needed with a finished cache."""
    vae: pathlib.Path = pathlib.Path("sd-vae-ft-mse")
    """Folder or file of the autoencoder."""
    cache: Place | None = None
    """Folder of latents to train from; what it lacks is encoded first. By default every step encodes."""
    encode_batch: Count = 16
    """Images encoded at once, over all devices (1 or more)."""
    classes: tyro.conf.Suppress[Count] = 1
    """Number of classes in a plan made where neither a cache nor images tell it (1 or more)."""

    prefix: ClassVar[str] = ""
    """Their options stand on the command line by themselves: --vae, and data:image-folder for `images`."""

    @functools.cached_property
    def autoencoder(self) -> "Autoencoder":
        """The autoencoder, read once. Raises ValueError if there is none."""
        from ..pretrained.autoencoder_files import load_autoencoder

        return load_autoencoder(self.vae)

    @property
    def mirror(self) -> bool:
        """Whether latents of mirror images are drawn too: as the images say, or else if the cache holds any."""
        from .latents import blank

        return self.images.mirror if self.images is not None else self.cache is not None and blank(self.cache).mirrored

    @property
    def digest(self) -> str | None:
        """SHA-256 of the cache's manifest, the same wherever it lies; None without a cache."""
        from .latents import MANIFEST

        return None if self.cache is None else hashlib.sha256((self.cache / MANIFEST).read_bytes()).hexdigest()

    @property
    def identity(self) -> "Identity | None":
        """The identity of the images that the cache was made of; None without a cache."""
        from .latents import read_manifest

        return None if self.cache is None else read_manifest(self.cache).get("identity")

    def build(self) -> tuple[Rows, Rows]:
        """Latents to train on and others held out, laid out for the devices of the mesh in use (`jax.set_mesh`), if any.

        Raises DataError if neither images nor a cache are named; ValueError if the cache is one of other latents.
        """
        if self.images is None and self.cache is None:
            raise DataError(
                "neither images nor latents are named, with data:image-folder --data.path FOLDER (or data:parquet, data:tfds, "
                "data:arrays) or --cache FOLDER: name one; the text at the top of --help says how to get them"
            )
        return self._encoded() if self.cache is None else self._cached(self.cache)

    def fill(self, report: Callable[[str], None] = lambda line: None) -> None:
        """Encodes the images into the cache if one is named and not finished; `report` gets a line on what was read before."""
        from .encode import encode
        from .latents import MANIFEST

        if self.images is not None and self.cache is not None and not storage.exists(self.cache / MANIFEST):
            encode(self.images, self.autoencoder, self.cache, batch=self.encode_batch, shard=SHARD, report=report)

    def _encoded(self) -> tuple[Rows, Rows]:
        from .. import sharding
        from .encoded import Encoded

        autoencoder, mesh = self.autoencoder, jax.sharding.get_mesh()
        if not mesh.empty:
            sharding.check_batch(self.encode_batch, mesh)
            autoencoder = sharding.replicate(autoencoder, mesh)
        assert self.images is not None
        parts = self.images.build()
        _ = autoencoder.latent_shape(parts[0].shape)  # raises ValueError for images of a size that it does not halve
        train, held_out = (Encoded(part, autoencoder, self.encode_batch) for part in parts)
        return train, held_out

    def _cached(self, cache: storage.Path) -> tuple[Rows, Rows]:
        from .encode import check_cache
        from .latents import read_latents

        self.fill()
        check_cache(cache, self.images, self.autoencoder)
        here = _on_disk(cache)
        train, held_out = (read_latents(here, part) for part in ("train", "held_out"))
        if self.mirror and not train.mirrored:
            raise ValueError(f"{cache} holds no mirror images: use --data.no-mirror, or encode into another folder")
        return train, held_out

    def blank(self) -> Rows:
        """One latent of zeros, of the kind that the cache holds, or the autoencoder and the images make, or else `LATENT`.

        Raises ValueError for an autoencoder that cannot be read, or that makes no latent of images of this size.
        """
        from .latents import MANIFEST, blank, zeros

        if self.cache is not None and storage.exists(self.cache / MANIFEST):
            return blank(self.cache)
        if self.images is None:
            return zeros((2, 2, *LATENT), self.classes, "as expected, none are named")
        size = self.images.size
        if self.vae.exists():
            shape, note = self.autoencoder.latent_shape((size, size, 3)), f"latents of {self.vae}"
        else:
            shape, note = (size // 8, size // 8, LATENT[-1]), f"no autoencoder in {self.vae}, so latents as expected"
        seen = self.images.blank()
        classes = self.classes if self.images.indexed or not self.images.path.exists() else seen.classes
        return zeros((2, 2, *shape), classes, note, *seen.notes)

    def pictures(self, samples: Float[Array | np.ndarray, "count *shape"]) -> Float[np.ndarray, "count height width channels"]:
        """The images of latents."""
        from ..pretrained.autoencoder import decode_batch, from_training

        return decode_batch(self.autoencoder, from_training(self.autoencoder, jax.numpy.asarray(samples)))


def _on_disk(cache: storage.Path) -> storage.Path:
    """A cache that can be mapped into memory: itself, or a copy of one that lies in an object store."""
    from .. import distributed, progress
    from .latents import copied

    if not storage.is_remote(cache):
        return cache
    quiet = not distributed.is_main_process()
    each = functools.partial(progress.bar, desc=f"copying {cache}", unit="file", quiet=quiet)
    return copied(cache, storage.cache_home() / "latents", each=each)
