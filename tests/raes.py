"""Representation autoencoders: configs of a published and of a small one, and random weights under their names."""

from typing import Any

import numpy as np

import published
from dcaes import SHAPES

Config = dict[str, Any]

SMALL: Config = {
    "_class_name": "AutoencoderRAE",
    "encoder_hidden_size": 128,
    "encoder_patch_size": 14,
    "encoder_num_hidden_layers": 2,
    "encoder_input_size": 42,
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
    "patch_size": 4,
    "scaling_factor": 0.5,
}
"""Images of 12 x 12, of which the encoder sees 42 x 42 in 3 x 3 patches; two heads."""
SIDE = 12

PUBLISHED: Config = {
    "_class_name": "AutoencoderRAE",
    "encoder_hidden_size": 768,
    "encoder_patch_size": 14,
    "encoder_num_hidden_layers": 12,
    "encoder_input_size": 224,
    "decoder_hidden_size": 1152,
    "decoder_num_hidden_layers": 28,
    "decoder_num_attention_heads": 16,
    "decoder_intermediate_size": 4096,
    "patch_size": 16,
}
"""DINOv2-base with registers, and the decoder ViT-XL, as diffusers' converter states them."""


def moments() -> dict[str, np.ndarray]:
    """Of every latent, channels first."""
    rng = np.random.default_rng(2)
    shape = (128, 3, 3)
    return {
        "latents_mean": rng.standard_normal(shape, np.float32),
        "latents_std": rng.uniform(0.5, 1, shape).astype(np.float32),
    }


def weights() -> dict[str, np.ndarray]:
    """Of the small one; what images are standardised by is no noise."""
    colours = {"encoder_mean": np.array([0.4, 0.5, 0.6], np.float32), "encoder_std": np.array([0.2, 0.3, 0.25], np.float32)}
    buffers = {name: value.reshape(1, 3, 1, 1) for name, value in colours.items()}
    return published.weights(SHAPES["rae"]) | buffers | {f"_{name}": value for name, value in moments().items()}
