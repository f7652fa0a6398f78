"""Features made by networks: Inception's (FID), EfficientNet-Lite0's, and those of a classifier trained here."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Shaped

from ..pretrained.classifier import Activations
from ..pretrained.efficientnet import load_efficientnet, published_weights
from ..pretrained.inception import load_inception
from ..pretrained.small_classifier import load_classifier
from ..sharding import batch_sharding, make_mesh, replicate
from ..storage import checksum
from .features import Extracted, check_images
from .preprocess import EFFICIENTNET, TF, UNCHANGED, Preprocessing

Network = Callable[[Float[Array, "side side 3"]], Activations]
"""A network of one image."""


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkFeatures:
    """Features of images by a network, `batch` at a time by one compiled program a size of image, in full float32.

    A batch is split over the local devices if they divide it, or else computed on the first one. Grey images are repeated
    to three channels, values beyond [-1, 1] clipped.
    """

    name: str
    protocol: Mapping[str, str]
    network: Network
    preprocessing: Preprocessing
    batch: int = 32

    def __post_init__(self):
        if self.batch < 1:
            raise ValueError(f"batch={self.batch}: compute at least 1 image at once")

    def __call__(self, images: Shaped[np.ndarray, "..."]) -> Extracted:
        """Raises ValueError for what are no images in [-1, 1] (see check_images)."""
        check_images(images, channels=(1, 3))
        starts = range(0, len(images), self.batch)
        parts = [self._extract(images[start : start + self.batch]) for start in starts]
        vectors, spatial, logits = jax.tree.map(lambda *columns: np.concatenate(columns), *parts)
        return Extracted(vectors, spatial, logits)

    @functools.cached_property
    def _placed(self) -> tuple[jax.sharding.Mesh, PyTree]:
        """The devices, and the network on each of them."""
        devices = jax.local_devices()
        mesh = make_mesh(devices=devices if self.batch % len(devices) == 0 else devices[:1])
        return mesh, replicate(self.network, mesh)

    def _extract(self, images: Shaped[np.ndarray, "count height width channels"]) -> Activations:
        count, (mesh, network) = len(images), self._placed
        filled = np.pad(images.astype(np.float32), [(0, self.batch - count)] + [(0, 0)] * 3)
        # Of a run that is judged another mesh is in use; the default precision of accelerators rounds products to half the
        # digits, which moves distances.
        with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
            activations = _activations(network, jax.device_put(filled, batch_sharding(mesh)), self.preprocessing)
        return jax.tree.map(lambda column: np.asarray(column)[:count], activations)


@eqx.filter_jit
def _activations(network, images, preprocessing):
    # Repeated here, so that one channel alone is sent to the device.
    coloured = jnp.broadcast_to(images, (*images.shape[:3], 3))
    return jax.vmap(lambda image: network(preprocessing.prepare(image)))(coloured)


def inception_features(path: str | pathlib.Path, *, preprocessing: Preprocessing = TF, batch: int = 32) -> NetworkFeatures:
    """Inception's 2048 features (FID), with those that keep their place (sFID) and logits (Inception Score) if in the file.

    The file is pytorch-fid's or the original code's (see load_inception, which raises ValueError for others).
    """
    return _from_file("FID", "Inception-V3", load_inception, pathlib.Path(path), preprocessing, batch)


def efficientnet_features(path: str | pathlib.Path | None = None, *, batch: int = 32) -> NetworkFeatures:
    """EfficientNet-Lite0's 1280 features and its logits, from the file of its state dictionary or else from its package.

    No Frechet distance in these is a FID: they are from another network, and tell nothing next to published numbers.
    Raises ValueError if the package is not installed, or the file holds other weights.
    """
    path = published_weights() if path is None else pathlib.Path(path)
    return _from_file("FD-EffNetLite0", "EfficientNet-Lite0", load_efficientnet, path, EFFICIENTNET, batch)


def classifier_features(path: str | pathlib.Path, *, batch: int = 32) -> NetworkFeatures:
    """The 128 features of a small classifier trained here, and its logits (see load_classifier, which raises ValueError).

    Distances are comparable among images judged by the same file alone.
    """
    load = lambda path: load_classifier(path)[0]  # noqa: E731
    return _from_file("classifier Frechet distance", "small classifier", load, pathlib.Path(path), UNCHANGED, batch)


def _from_file(
    name: str, kind: str, load: Callable[[pathlib.Path], Network], path: pathlib.Path, preprocessing: Preprocessing, batch: int
) -> NetworkFeatures:
    network = load(path)
    protocol = {"network": kind, "weights": f"sha256 {checksum([path])[:16]}", "preprocessing": preprocessing.name}
    return NetworkFeatures(name, protocol, network, preprocessing, batch)
