"""Autoencoders from the files in which they are published."""

import json
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from .autoencoder import Autoencoder
from .sdvae import SDVAEConfig
from .taesd import TAESDConfig
from .tensors import read_safetensors

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
ENCODER, DECODER = "encoder.safetensors", "decoder.safetensors"

Names = Callable[[str], tuple[str, ...]]
"""From a parameter's place in the module to the names that its tensor may have in the file, the usual one first."""

OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""Names of the attention's layers before diffusers 0.15."""

GET = (
    f"fetch one, for example with `hf download stabilityai/sd-vae-ft-mse {CONFIG} {WEIGHTS} --local-dir FOLDER`, "
    "and name its folder"
)


def load_autoencoder(path: str | pathlib.Path) -> Autoencoder:
    """The autoencoder of a folder of diffusers (AutoencoderKL or AutoencoderTiny), or of a pair of files of taesd.

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
    readers = {"AutoencoderKL": (_sdvae_config, _sdvae_names), "AutoencoderTiny": (_tiny_config, _tiny_names)}
    if kind not in readers:
        raise ValueError(f"{source} describes {kind!r}, which cannot be read: choose one of {', '.join(readers)}")
    settings, names = readers[kind]
    return _fill(settings(config, source), _tensors(folder / WEIGHTS), names, str(folder / WEIGHTS))


def _tensors(path: pathlib.Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    if not path.is_file():
        raise ValueError(f"no file {path}, which the autoencoder needs: {GET}")
    return read_safetensors(path)[0]


def _settings(config: Mapping[str, Any], source: pathlib.Path, *, needed: Iterable[str], fixed: Mapping[str, Any]) -> None:
    missing = [name for name in needed if name not in config]
    if missing:
        raise ValueError(f"{source} lacks {missing[0]!r}: fetch it again")
    for name, value in fixed.items():
        stored = config.get(name, value)
        if any(item != value for item in (stored if isinstance(stored, list) else [stored])):
            raise ValueError(f"{source} has {name}={stored!r}, and only {value!r} can be read: choose another autoencoder")


def _sdvae_config(config: Mapping[str, Any], source: pathlib.Path) -> SDVAEConfig:
    sizes = ("block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups")
    fixed = {
        "act_fn": "silu",
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": "DownEncoderBlock2D",
        "up_block_types": "UpDecoderBlock2D",
        "mid_block_add_attention": True,
        "latents_mean": None,
        "latents_std": None,
    }
    _settings(config, source, needed=sizes, fixed=fixed)
    return SDVAEConfig(
        block_out_channels=tuple(config["block_out_channels"]),
        **{name: config[name] for name in sizes[1:]},
        scaling_factor=config.get("scaling_factor", 0.18215),
        shift_factor=config.get("shift_factor") or 0.0,
        use_quant_conv=config.get("use_quant_conv", True),
        use_post_quant_conv=config.get("use_post_quant_conv", True),
    )


def _tiny_config(config: Mapping[str, Any], source: pathlib.Path) -> TAESDConfig:
    widths = ("encoder_block_out_channels", "decoder_block_out_channels")
    needed = (*widths, "latent_channels", "num_encoder_blocks", "num_decoder_blocks")
    _settings(config, source, needed=needed, fixed={})
    width = config[widths[0]][0]
    same = dict.fromkeys(widths, width)
    fixed = {"act_fn": "relu", "in_channels": 3, "out_channels": 3, "upsample_fn": "nearest", "upsampling_scaling_factor": 2}
    _settings(config, source, needed=(), fixed={**same, **fixed})
    return TAESDConfig(
        latent_channels=config["latent_channels"],
        width=width,
        encoder_blocks=tuple(config["num_encoder_blocks"]),
        decoder_blocks=tuple(config["num_decoder_blocks"]),
        scaling_factor=config.get("scaling_factor", 1.0),
        shift_factor=config.get("shift_factor") or 0.0,
    )


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
    name = re.sub(r"\.(down|up)sampler\.", r".\1samplers.0.conv.", _weight(place))
    name = name.replace(".attention.", ".attentions.0.").replace(".to_out.", ".to_out.0.")
    old = name
    for new_layer, old_layer in OLD_ATTENTION.items():
        old = old.replace(f".attentions.0.{new_layer}.", f".attentions.0.{old_layer}.")
    return (name,) if old == name else (name, old)


def _taesd_names(place: str) -> tuple[str, ...]:
    return (_weight(place).replace(".layers.", "."),)


def _tiny_names(place: str) -> tuple[str, ...]:
    half, layer, rest = re.fullmatch(r"(\w+)\.layers\.(\d+)\.(.*)", _weight(place)).groups()  # pyright: ignore
    # diffusers applies the decoder's first layer, which has no parameters, outside of its list.
    return (f"{half}.layers.{int(layer) - (half == 'decoder')}.{rest.replace('.layers.', '.')}",)


def _fill(
    config: SDVAEConfig | TAESDConfig, tensors: Mapping[str, Shaped[np.ndarray, "..."]], names: Names, source: str
) -> Autoencoder:
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
                f"in {source} the tensor {chosen} has shape {tensors[chosen].shape}, not {_torch_shape(leaf.shape)} as its "
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
    # Early files keep attention's layers as 1 x 1 convolutions.
    if ndim == 2 and tensor.shape[2:] == (1, 1):
        tensor = tensor[..., 0, 0]
    values = tensor.astype(np.float32)
    return values.transpose(2, 3, 1, 0) if values.ndim == 4 else values.T


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
