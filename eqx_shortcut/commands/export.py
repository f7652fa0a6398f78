"""Writes a trained run as one file that draws samples with JAX alone, without this library: network, weights and sampler.

    eqx-shortcut export runs/digits/shortcut --steps 1 --out digits.bin

The file holds a function of a seed and of labels, or of a policy's observations, as many as wanted, for CPU, CUDA and TPU at
once (serialised by jax.export). Its sample number i is that of `eqx-shortcut sample` with that seed and label. Its precision is
that of the machine that exports, float32 on a CPU, unless the run settled it (--network.precision).
"""

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

from ..cli import check_out
from ..ranges import Count
from ._opening import Opening

if TYPE_CHECKING:
    from ..trained import Trained

PLATFORMS = ("cpu", "cuda", "tpu")

LIMIT = 2**31 - 2**24
"""Bytes of weights that fit: the format of the file ends at 2 GiB."""

USE = """
import pathlib
import jax, numpy as np  # and pip install flatbuffers
from jax import export

draw = jax.jit(export.deserialize(bytearray(pathlib.Path({path!r}).read_bytes())).call)
x = draw(np.uint32(0), {given}
{what}
"""


@dataclasses.dataclass(frozen=True)
class Config(Opening):
    """A sampler as a file."""

    steps: Count = 1
    """Sampling steps (1 or more)."""
    decode: bool = False
    """Include the autoencoder of a run on latents, so that the file draws pictures."""
    out: pathlib.Path = pathlib.Path("model.bin")
    """File to write."""


def main(config: Config) -> None:
    """Loads the run, writes the file and says how to use it."""
    import jax
    import numpy as np
    from jax import export

    from .. import storage
    from ..decoding import autoencoder
    from ..trained import load

    check_out(config.out)
    model = load(config.run, weights=config.weights, step=config.step)
    decoding = autoencoder(config.run, config.vae) if config.decode else None
    check(config, model, decoding)
    (count,) = export.symbolic_shape("count")
    one = model.null if model.conditional and model.null is not None else np.zeros((), np.int32)
    given = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *np.shape(leaf)), np.asarray(leaf).dtype), one)
    arguments = jax.ShapeDtypeStruct((), jax.numpy.uint32), given
    exported = export.export(jax.jit(sampler(config, model, decoding)), platforms=PLATFORMS)(*arguments)
    data = serialized(exported)
    with storage.draft_of(config.out) as draft:
        draft.write_bytes(data)
    print(f"{config.out}: {len(data) / 2**20:,.1f} MiB, for {', '.join(PLATFORMS)}; to use it:")
    kind, shape = kind_of(model, decoding), ", ".join(map(str, exported.out_avals[0].shape))
    print(USE.format(path=str(config.out), given=arguments_of(model), what=f"# x: {kind}, ({shape})"))


def check(config: Config, model: "Trained", decoding: Any) -> None:
    """Raises ValueError for guidance that would do nothing, a missing autoencoder and weights that do not fit into a file."""
    import jax

    if config.guidance != 1 and not config.sampling(config.steps, config.guidance).guides(model.objective):
        raise ValueError(
            f"--guidance {config.guidance} does not apply to {config.run} in {config.steps} step{'s'[: config.steps > 1]}: "
            "leave it at 1, or insist with --guide-always"
        )
    if config.decode and decoding is None:
        raise ValueError(f"--decode: {config.run} draws pictures and has no autoencoder: leave it out")
    if (size := sum(leaf.nbytes for leaf in jax.tree.leaves((model, decoding)))) > LIMIT:
        raise ValueError(
            f"{size / 2**30:.2f} GiB of weights do not fit into a file of jax.export (2 GiB): use eqx-shortcut weights"
        )


def kind_of(model: "Trained", decoding: Any) -> str:
    """What the samples are, and their units."""
    spatial = model.null is None and len(model.shape) == 3
    if decoding is not None or (spatial and model.shape[-1] in (1, 3)):
        return "images in [-1, 1] up to overshoot"
    return "latents in the units of training" if spatial else "the data's units"


def arguments_of(model: "Trained") -> str:
    """The second argument of the function in the file, as an example in Python, with a remark."""
    from ..types import shown

    if not model.conditional:
        return "np.zeros(16, np.int32))  # seed, and a zero for each sample"
    if model.null is None:
        return f"np.arange(16, dtype=np.int32) % {model.classes})  # seed, labels ({model.classes} for none)"
    return f"seen)  # seed, and what is seen, with a leading axis each: {shown(model.null)}"


def sampler(config: Config, model: "Trained", decoding: Any) -> Any:
    """The function that the file holds: from a seed and labels or conditions to samples."""
    import jax
    import jax.numpy as jnp

    from ..pretrained.autoencoder import from_training
    from ..trained import noise, sample_from

    name = "labels" if model.null is None else "conditions"
    how = config.sampling(config.steps, config.guidance)

    def draw(seed, given):
        key, indices = jax.random.key(seed), jnp.arange(jax.tree.leaves(given)[0].shape[0])
        cond = {name: given} if model.conditional else {}
        x = sample_from(model, key, noise(model, key, indices), how, **cond)
        return x if decoding is None else jax.vmap(decoding.decode)(from_training(decoding, x))

    return draw


def serialized(exported: Any) -> bytes:
    """The file's bytes. Raises ValueError if a package that they need is missing."""
    try:
        return exported.serialize()
    except ImportError as error:
        raise ValueError(f"the file cannot be written ({error}): pip install flatbuffers") from error
