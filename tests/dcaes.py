"""Deep compression autoencoders: configs of published and of small ones, and folders of random weights under their names."""

import json
import pathlib
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import published

Config = dict[str, Any]


def _both(**values: Any) -> Config:
    """The same entry of encoder and decoder."""
    return {f"{half}_{name}": value for name, value in values.items() for half in ("encoder", "decoder")}


def _levels(widths: list[int], plain: int) -> Config:
    kinds = ["ResBlock"] * plain + ["EfficientViTBlock"] * (len(widths) - plain)
    return _both(block_out_channels=widths, block_types=kinds, qkv_multiscales=[[] for _ in widths])


def _imagenet(latent: int, widths: list[int]) -> Config:
    deep = len(widths) - 3
    sizes = {"encoder_layers_per_block": [0, 4, 8, *[2] * deep], "decoder_layers_per_block": [0, 5, 10, *[2] * deep]}
    norms = {"decoder_norm_types": ["batch_norm"] * 3 + ["rms_norm"] * deep, "decoder_act_fns": ["relu"] * 3 + ["silu"] * deep}
    return {"latent_channels": latent, **_levels(widths, 3), **sizes, **norms}


_WIDTHS = [128, 256, 512, 512, 1024, 1024]
_CONVOLVED = {"downsample_block_type": "Conv", "upsample_block_type": "interpolate"}
PUBLISHED: dict[str, Config] = {
    "dc-ae-f32c32-in-1.0": _imagenet(32, _WIDTHS) | {"scaling_factor": 0.3189},
    "dc-ae-f64c128-in-1.0": _imagenet(128, [*_WIDTHS, 2048]),
    "dc-ae-f128c512-in-1.0": _imagenet(512, [*_WIDTHS, 2048, 2048]),
    "dc-ae-f32c32-sana-1.0": {
        "latent_channels": 32,
        **_levels(_WIDTHS, 3),
        **_both(qkv_multiscales=[[], [], [], [5], [5], [5]]),
        "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
        "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
        **_CONVOLVED,
        "scaling_factor": 0.41407,
    },
}
"""As mit-han-lab's converter to diffusers states them."""

_SMALL = {"latent_channels": 8, "attention_head_dim": 8, **_levels([8, 8, 16], 2), "scaling_factor": 0.4}
SMALL: dict[str, Config] = {
    "shuffled": {
        **_SMALL,
        "encoder_layers_per_block": [0, 1, 2],
        "decoder_layers_per_block": [0, 2, 1],
        "decoder_norm_types": ["batch_norm", "batch_norm", "rms_norm"],
        "decoder_act_fns": ["relu", "relu", "silu"],
    },
    "convolved": {
        **_SMALL,
        **_CONVOLVED,
        **_both(layers_per_block=[1, 1, 1], qkv_multiscales=[[], [], [5, 3]]),
        "decoder_conv_act_fn": "silu",
        "encoder_out_shortcut": False,
    },
}
"""Factor 4; heads of 8 channels, and squares of 5 and of 3 pixels. The kinds of the two families that are published."""

SHAPES = published.shapes("autoencoder_shapes.json")


def weights(name: str) -> dict[str, np.ndarray]:
    """Of a small autoencoder; variances are positive."""
    found = published.weights(SHAPES[name])
    return {at: np.abs(value) + 0.5 if at.endswith("running_var") else value for at, value in found.items()}


def image(height: int, width: int) -> np.ndarray:
    """Values in [-1, 1]."""
    return np.random.default_rng(1).uniform(-1, 1, (height, width, 3)).astype(np.float32)


def write(folder: pathlib.Path, config: Config, tensors: dict[str, np.ndarray]) -> pathlib.Path:
    """A folder of diffusers, whose class is AutoencoderDC if `config` names none."""
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderDC", **config}))
    return folder
