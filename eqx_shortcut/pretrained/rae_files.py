"""What diffusers' files say of an AutoencoderRAE: its config, and the names and layout of its tensors."""

import contextlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from .autoencoder_configs import check_settings
from .rae import RAEConfig

Tensors = Mapping[str, Shaped[np.ndarray, "..."]]

SIZES = {
    "encoder_hidden_size": "latent_channels",
    "encoder_num_hidden_layers": "encoder_blocks",
    "encoder_patch_size": "encoder_patch",
    "encoder_input_size": "encoder_side",
    "decoder_hidden_size": "decoder_width",
    "decoder_num_hidden_layers": "decoder_blocks",
    "decoder_num_attention_heads": "decoder_heads",
    "decoder_intermediate_size": "decoder_hidden",
    "patch_size": "decoder_patch",
    "scaling_factor": "scaling_factor",
}
"""Entries of a config, any of which it may leave out, and ours."""

TOKENS = ("cls_token", "register_tokens", "position_embeddings")
EMBEDDINGS = "encoder.embeddings."
LAYERS: dict[str, tuple[str, ...]] = {
    "latents_mean": ("_latents_mean",),
    "latents_std": ("_latents_std",),
    "encoder.projection": (f"{EMBEDDINGS}patch_embeddings.projection",),
    **{f"encoder.{token}": (EMBEDDINGS + token,) for token in TOKENS},
    "decoder.cls_token": ("decoder.trainable_cls_token",),
    **{f"decoder.{layer}": (f"decoder.decoder_{layer}",) for layer in ("embed", "norm", "pred")},
}
"""Names of layers by their place."""
BLOCKS: dict[str, dict[str, tuple[str, ...]]] = {
    "encoder": {
        "norm1": ("norm1",),
        "to_q": ("attention.q_proj", "attention.attention.query"),
        "to_k": ("attention.k_proj", "attention.attention.key"),
        "to_v": ("attention.v_proj", "attention.attention.value"),
        "to_out": ("attention.o_proj", "attention.output.dense"),
        "scale1": ("layer_scale1.lambda1",),
        "norm2": ("norm2",),
        "fc1": ("mlp.fc1",),
        "fc2": ("mlp.fc2",),
        "scale2": ("layer_scale2.lambda1",),
    },
    "decoder": {
        "norm1": ("layernorm_before",),
        **{name: (f"attention.{name}",) for name in ("to_q", "to_k", "to_v")},
        "to_out": ("attention.to_out.0",),
        "norm2": ("layernorm_after",),
        "fc1": ("intermediate.dense",),
        "fc2": ("output.dense",),
    },
}
"""Names of layers by their place in a block, with those of transformers 4 after those of 5."""
LISTS = {"encoder": "encoder.encoder.layer", "decoder": "decoder.decoder_layers"}
UNUSED = ("encoder.embeddings.mask_token", "decoder.decoder_pos_embed")
"""Of use in training alone, and made anew."""


def rae_config(config: Mapping[str, Any]) -> RAEConfig:
    """The config of AutoencoderRAE. Raises SettingsError, or what its values lead to, if it cannot be read."""
    check_settings(config, needed=(), fixed={"encoder_type": "dinov2", "num_channels": 3, "reshape_to_2d": True})
    return RAEConfig(**{ours: config[theirs] for theirs, ours in SIZES.items() if theirs in config})


def rae_names(place: str) -> tuple[str, ...]:
    """Names that the tensor of a parameter may have, the usual one first."""
    layer, _, parameter = re.fullmatch(r"(.*?)(\.(kernel|weight|bias))?", place).groups()  # pyright: ignore
    end = {None: "", "bias": ".bias"}.get(parameter, ".weight")
    if block := re.fullmatch(r"(\w+)\.blocks\.(\d+)\.(\w+)", layer):
        half, number, part = block.groups()
        return tuple(f"{LISTS[half]}.{number}.{name}{end}" for name in BLOCKS[half][part])
    return tuple(name + end for name in LAYERS.get(layer, (layer,)))


def rae_tensors(tensors: Tensors, config: RAEConfig) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The tensors with moments of every latent, and without the axes of one entry that tokens and colours have."""
    return {name: _laid_out(name, tensor, config) for name, tensor in tensors.items() if name not in UNUSED}


def _laid_out(name: str, tensor: Shaped[np.ndarray, "..."], config: RAEConfig) -> Shaped[np.ndarray, "..."]:
    if name in ("encoder_mean", "encoder_std"):
        return tensor.ravel()
    if name in ("_latents_mean", "_latents_std"):
        with contextlib.suppress(ValueError):  # of another shape, which is named where the network is filled
            return np.broadcast_to(tensor, (config.latent_channels, config.grid, config.grid))[:, None]
    return tensor[0].T if name.endswith((*TOKENS, "trainable_cls_token")) and tensor.ndim == 3 else tensor
