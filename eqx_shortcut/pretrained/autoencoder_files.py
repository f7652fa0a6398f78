"""Autoencoders from the files in which they are published."""

import json
import pathlib
import re
from collections.abc import Callable, Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from ..errors import first_line
from ..storage import checksum
from .autoencoder import Autoencoder
from .autoencoder_configs import Config, SettingsError, dcae_config, sdvae_config, tiny_config
from .rae import RAEConfig
from .rae_files import rae_config, rae_names, rae_tensors
from .sdvae import SDVAEConfig
from .taesd import TAESDConfig
from .tensors import read_safetensors, torch_shape

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
ENCODER, DECODER = "encoder.safetensors", "decoder.safetensors"

Names = Callable[[str], tuple[str, ...]]
"""From a parameter's place in the module to the names that its tensor may have in the file, the usual one first."""

KNOWN = {
    "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815": ("stabilityai/sd-vae-ft-mse", SDVAEConfig()),
    "1598f3d24932bcfe6634e8b618ea1e30ab1d57f5aad13a6d2de446d2199f2341": (
        "the folder vae of stabilityai/stable-diffusion-xl-base-1.0",
        SDVAEConfig(scaling_factor=0.13025),
    ),
    "1b909373b28f2137098b0fd9dbc6f97f8410854f31f84ddc9fa04b077b0ace2c": (
        "madebyollin/sdxl-vae-fp16-fix",
        SDVAEConfig(scaling_factor=0.13025),
    ),
}
"""By SHA-256 of the weights, where well-known files are from and what config they have, which shapes do not tell."""

OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""Names of the attention's layers before diffusers 0.15."""

GET = (
    f"fetch one, for example with `hf download stabilityai/sd-vae-ft-mse {CONFIG} {WEIGHTS} --local-dir FOLDER`, "
    "and name its folder"
)


def load_autoencoder(path: str | pathlib.Path) -> Autoencoder:
    """The autoencoder of a folder of diffusers (AutoencoderKL, -Tiny, -DC or -RAE), or of a pair of files of taesd.

    A pair is `*encoder.safetensors` with `*decoder.safetensors`: name either file, or the folder if it holds one pair. Both
    spellings of attention are read, and any floating type, as float32. Raises ValueError naming the file and what it lacks.
    """
    path = pathlib.Path(path)
    if path.is_file():
        return _read_pair(*_pair_of(path))
    if (path / CONFIG).is_file():
        return _read_diffusers(path)
    encoders = sorted(path.glob(f"*{ENCODER}"))
    if len(encoders) > 1:
        raise ValueError(f"{path} holds {len(encoders)} encoders, {', '.join(e.name for e in encoders)}: name one of the files")
    if encoders:
        return _read_pair(*_pair_of(encoders[0]))
    raise ValueError(
        f"no autoencoder in {path}, which should hold {CONFIG} and {WEIGHTS} (diffusers), or *{ENCODER} and *{DECODER} "
        f"(madebyollin/taesd): {GET}"
    )


def _pair_of(path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    for ending in (ENCODER, DECODER):
        if path.name.endswith(ending):
            stem = path.name.removesuffix(ending)
            return path.with_name(stem + ENCODER), path.with_name(stem + DECODER)
    if path.name in (CONFIG, WEIGHTS):
        raise ValueError(f"{path} is one file of two: name its folder, which should hold {CONFIG} and {WEIGHTS}")
    raise ValueError(f"{path} is none of *{ENCODER}, *{DECODER}: name one of a pair of these, or the folder of a {CONFIG}")


def _read_pair(encoder: pathlib.Path, decoder: pathlib.Path) -> Autoencoder:
    halves = {"encoder": _tensors(encoder), "decoder": _tensors(decoder)}
    source = f"{encoder} with {decoder.name}"
    tensors = {f"{half}.{name}": tensor for half, part in halves.items() for name, tensor in part.items()}
    return _fill(_taesd_config(tensors, source), tensors, _taesd_names, source)


def _read_diffusers(folder: pathlib.Path) -> Autoencoder:
    source = folder / CONFIG
    try:
        config = json.loads(source.read_bytes())
        kind = config["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{source} is no config of diffusers ({type(error).__name__}: {error}): {GET}") from error
    readers = {
        "AutoencoderKL": (sdvae_config, _sdvae_names),
        "AutoencoderTiny": (tiny_config, _tiny_names),
        "AutoencoderDC": (dcae_config, _dcae_names),
        "AutoencoderRAE": (rae_config, rae_names),
    }
    if kind not in list(readers):  # of which a damaged one is perhaps not even hashable
        raise ValueError(f"{source} describes {kind!r}, which cannot be read: choose one of {', '.join(readers)}")
    described, names = readers[kind]
    try:
        built = described(config)
    except SettingsError as error:
        raise ValueError(f"{source} {error}") from error
    except (IndexError, TypeError, ValueError) as error:
        raise ValueError(
            f"{source} describes no autoencoder that can be built ({first_line(error, 1000)}): choose another one"
        ) from error
    tensors = _tensors(folder / WEIGHTS)
    _check_known(folder / WEIGHTS, built)
    # Of use in training alone.
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(".num_batches_tracked")}
    kept = rae_tensors(kept, built) if isinstance(built, RAEConfig) else kept
    return _fill(built, kept, names, str(folder / WEIGHTS))


def _check_known(weights: pathlib.Path, config: Config) -> None:
    """Raises ValueError if the weights are a well-known file beside the config of another."""
    name, own = KNOWN.get(checksum([weights]), ("", config))
    if own != config:
        raise ValueError(f"{weights} is the file of {name}, and {CONFIG} beside it is of another autoencoder: fetch both there")


def _tensors(path: pathlib.Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    if not path.is_file():
        raise ValueError(f"no file {path}, which the autoencoder needs: {GET}")
    return read_safetensors(path)[0]


def _taesd_config(tensors: Mapping[str, Shaped[np.ndarray, "..."]], source: str) -> TAESDConfig:
    """Sizes from the names: a convolution without bias begins a level of the encoder and ends one of the decoder."""
    blocks, last = {}, {}
    for half in ("encoder", "decoder"):
        places = sorted({int(match[1]) for name in tensors if (match := re.match(rf"{half}\.(\d+)\.", name))})
        blocks[half] = [0]
        for place in places:
            if f"{half}.{place}.conv.0.weight" in tensors:
                blocks[half][-1] += 1
            elif f"{half}.{place}.bias" not in tensors:
                blocks[half].append(0)
        last[half] = places[-1] if places else 0
    try:
        latent_channels = tensors[f"encoder.{last['encoder']}.weight"].shape[0]
        width = tensors["encoder.0.weight"].shape[0]
        pooled = any(".pool." in name for name in tensors)
        return TAESDConfig(latent_channels, width, tuple(blocks["encoder"]), tuple(blocks["decoder"]), pooled)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{source} do not hold the two halves of a tiny autoencoder ({error}): fetch them again") from error


def _weight(place: str) -> str:
    return re.sub(r"\.(kernel|scale)$", ".weight", place)


def _sdvae_names(place: str) -> tuple[str, ...]:
    name = re.sub(r"\b(down|up)(_blocks\.\d+\.)sampler\.", r"\1\2\1samplers.0.conv.", _weight(place))
    name = name.replace(".attention.", ".attentions.0.").replace(".to_out.", ".to_out.0.")
    old = name
    for new_layer, old_layer in OLD_ATTENTION.items():
        old = old.replace(f".attentions.0.{new_layer}.", f".attentions.0.{old_layer}.")
    return (name,) if old == name else (name, old)


def _dcae_names(place: str) -> tuple[str, ...]:
    return (_weight(place),)


def _taesd_names(place: str) -> tuple[str, ...]:
    return (_weight(place).replace(".layers.", "."),)


def _tiny_names(place: str) -> tuple[str, ...]:
    half, layer, rest = re.fullmatch(r"(\w+)\.layers\.(\d+)\.(.*)", _weight(place)).groups()  # pyright: ignore
    # diffusers applies the decoder's first layer, which has no parameters, outside of its list.
    return (f"{half}.layers.{int(layer) - (half == 'decoder')}.{rest.replace('.layers.', '.')}",)


def _fill(config: Config, tensors: Mapping[str, Shaped[np.ndarray, "..."]], names: Names, source: str) -> Autoencoder:
    """The module that `config` describes, with every parameter from the tensor of its name, and no tensor left over."""
    like = eqx.filter_eval_shape(lambda key: config.build(key=key), jax.random.key(0))
    places, tree = jax.tree_util.tree_flatten_with_path(like)
    filled, left = [], set(tensors)
    for place, leaf in places:
        wanted = names(jax.tree_util.keystr(place, simple=True, separator="."))
        chosen = next((name for name in wanted if name in tensors), None)
        if chosen is None:
            raise ValueError(f"{source} lacks the tensor {' or '.join(wanted)}: fetch it again, whole and with its own config")
        left.discard(chosen)
        tensor = _from_torch(tensors[chosen], len(leaf.shape))
        if tensor.shape != leaf.shape:
            raise ValueError(
                f"in {source} the tensor {chosen} has shape {tensors[chosen].shape}, not {torch_shape(leaf.shape)} as its "
                "network has: fetch it again with its own config"
            )
        filled.append(jnp.asarray(tensor))
    if left:
        raise ValueError(
            f"{source} holds {len(left)} tensors that its network has no place for, such as {min(left)}: "
            "fetch it again with its own config"
        )
    return jax.tree_util.tree_unflatten(tree, filled)


def _from_torch(tensor: Shaped[np.ndarray, "..."], ndim: int) -> Float[np.ndarray, "..."]:
    """In the order of JAX: `[out, in, rows, columns]` to `[rows, columns, in, out]`, and `[out, in]` to `[in, out]`."""
    # Files keep products of pixels as 1 x 1 convolutions, too.
    if ndim == 2 and tensor.shape[2:] == (1, 1):
        tensor = tensor[..., 0, 0]
    values = tensor.astype(np.float32)
    if ndim == 3 and tensor.ndim == 4 and tensor.shape[1] == 1:  # each channel convolved by itself
        return values[:, 0].transpose(1, 2, 0)
    return values.transpose(2, 3, 1, 0) if values.ndim == 4 else values.T
