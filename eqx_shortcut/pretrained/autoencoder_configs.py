"""Configs of diffusers' autoencoders, as config.json holds them, to ours."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax

from .convolution import BatchNorm, RMSNorm
from .dcae import DCAEConfig, Level
from .rae import RAEConfig
from .sdvae import SDVAEConfig
from .taesd import TAESDConfig

Config = SDVAEConfig | TAESDConfig | DCAEConfig | RAEConfig

NORMS = {"rms_norm": RMSNorm, "batch_norm": BatchNorm}
ACTIVATIONS = {"silu": jax.nn.silu, "relu": jax.nn.relu}
DC_DEFAULTS = {
    "attention_head_dim": 32,
    "downsample_block_type": "pixel_unshuffle",
    "upsample_block_type": "pixel_shuffle",
    "encoder_norm_types": "rms_norm",
    "encoder_act_fns": "silu",
    "encoder_out_shortcut": True,
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "decoder_in_shortcut": True,
    "decoder_conv_act_fn": "relu",
    "scaling_factor": 1.0,
}
"""Entries that a config of AutoencoderDC may leave out."""
ATTENTION = {"ResBlock": False, "EfficientViTBlock": True}
STRIDED = {"pixel_unshuffle": False, "conv": True, "Conv": True}
INTERPOLATED = {"pixel_shuffle": False, "interpolate": True}
"""What the names in a config of AutoencoderDC stand for, as the dictionaries above."""


class SettingsError(ValueError):
    """An entry of a config that cannot be read; its message goes on from the name of the file."""


def check_settings(config: Mapping[str, Any], *, needed: Iterable[str], fixed: Mapping[str, Any]) -> None:
    """Raises SettingsError if the config lacks an entry of `needed`, or has other values than those of `fixed`."""
    missing = [name for name in needed if name not in config]
    if missing:
        raise SettingsError(f"lacks {missing[0]!r}: fetch it again")
    for name, value in fixed.items():
        stored = config.get(name, value)
        if any(item != value for item in (stored if isinstance(stored, list) else [stored])):
            raise SettingsError(f"has {name}={stored!r}, and only {value!r} can be read: choose another autoencoder")


def sdvae_config(config: Mapping[str, Any]) -> SDVAEConfig:
    """The config of AutoencoderKL. Raises SettingsError, or what its values lead to, if it cannot be read."""
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
    check_settings(config, needed=sizes, fixed=fixed)
    return SDVAEConfig(
        block_out_channels=tuple(config["block_out_channels"]),
        **{name: config[name] for name in sizes[1:]},
        scaling_factor=config.get("scaling_factor", 0.18215),
        shift_factor=config.get("shift_factor") or 0.0,
        use_quant_conv=config.get("use_quant_conv", True),
        use_post_quant_conv=config.get("use_post_quant_conv", True),
    )


def tiny_config(config: Mapping[str, Any]) -> TAESDConfig:
    """The config of AutoencoderTiny. Raises SettingsError, or what its values lead to, if it cannot be read."""
    widths = ("encoder_block_out_channels", "decoder_block_out_channels")
    needed = (*widths, "latent_channels", "num_encoder_blocks", "num_decoder_blocks")
    check_settings(config, needed=needed, fixed={})
    width = config[widths[0]][0]
    same = dict.fromkeys(widths, width)
    fixed = {"act_fn": "relu", "in_channels": 3, "out_channels": 3, "upsample_fn": "nearest", "upsampling_scaling_factor": 2}
    check_settings(config, needed=(), fixed={**same, **fixed})
    return TAESDConfig(
        latent_channels=config["latent_channels"],
        width=width,
        encoder_blocks=tuple(config["num_encoder_blocks"]),
        decoder_blocks=tuple(config["num_decoder_blocks"]),
        scaling_factor=config.get("scaling_factor", 1.0),
        shift_factor=config.get("shift_factor") or 0.0,
    )


def dcae_config(config: Mapping[str, Any]) -> DCAEConfig:
    """The config of AutoencoderDC. Raises SettingsError, or what its values lead to, if it cannot be read."""
    sizes = ("block_out_channels", "layers_per_block", "block_types", "qkv_multiscales")
    halves = ("encoder", "decoder")
    needed = ("latent_channels", *(f"{half}_{size}" for half in halves for size in sizes))
    check_settings(config, needed=needed, fixed={"in_channels": 3})
    given = {**DC_DEFAULTS, **config}
    encoder, decoder = (_levels(given, half) for half in halves)
    return DCAEConfig(
        encoder,
        decoder,
        latent_channels=given["latent_channels"],
        head=given["attention_head_dim"],
        strided=_looked_up(given, "downsample_block_type", STRIDED),
        interpolated=_looked_up(given, "upsample_block_type", INTERPOLATED),
        encoder_shortcut=given["encoder_out_shortcut"],
        decoder_shortcut=given["decoder_in_shortcut"],
        activation=_looked_up(given, "decoder_conv_act_fn", ACTIVATIONS),
        scaling_factor=given["scaling_factor"],
    )


def _levels(config: Mapping[str, Any], half: str) -> tuple[Level, ...]:
    count = len(config[f"{half}_block_out_channels"])

    def each(name: str, known: Mapping[str, Any] | None = None) -> list[Any]:
        """A value a level, for all of which the file may have one."""
        value = config[f"{half}_{name}"]
        values = [value] * count if isinstance(value, str) else value
        return values if known is None else [_looked_up({name: value}, name, known) for value in values]

    sizes = (each(name) for name in ("block_out_channels", "layers_per_block", "qkv_multiscales"))
    kinds = (each("block_types", ATTENTION), each("norm_types", NORMS), each("act_fns", ACTIVATIONS))
    return tuple(
        Level(width, blocks, tuple(scales) if attention else None, norm, activation)
        for width, blocks, scales, attention, norm, activation in zip(*sizes, *kinds, strict=True)
    )


def _looked_up(config: Mapping[str, Any], name: str, known: Mapping[str, Any]) -> Any:
    if config[name] not in known:
        raise ValueError(f"{name} is {config[name]!r}, and {', '.join(known)} alone are known")
    return known[config[name]]
