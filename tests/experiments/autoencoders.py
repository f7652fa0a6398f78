"""Small autoencoders of random weights in the files that published ones come in."""

import json
import pathlib

import jax
import numpy as np
from safetensors.numpy import save_file

from eqx_shortcut.pretrained.autoencoder_files import CONFIG, WEIGHTS, _sdvae_names
from eqx_shortcut.pretrained.sdvae import SDVAEConfig

KL = SDVAEConfig((4, 4), 1, latent_channels=2, norm_num_groups=2, scaling_factor=0.3, shift_factor=0.1)


def write_autoencoder(folder: pathlib.Path, seed: int = 0) -> pathlib.Path:
    """A variational autoencoder of factor 2 in a folder of diffusers."""
    places, _ = jax.tree_util.tree_flatten_with_path(jax.jit(lambda key: KL.build(key=key))(jax.random.key(seed)))
    tensors = {}
    for place, leaf in places:
        name = _sdvae_names(jax.tree_util.keystr(place, simple=True, separator="."))[0]
        order = (3, 2, 0, 1) if leaf.ndim == 4 else range(leaf.ndim)[::-1]
        tensors[name] = np.ascontiguousarray(np.asarray(leaf).transpose(*order))
    folder.mkdir()
    save_file(tensors, folder / WEIGHTS)
    described = {
        "_class_name": "AutoencoderKL",
        "block_out_channels": list(KL.block_out_channels),
        **{name: getattr(KL, name) for name in ("layers_per_block", "latent_channels", "norm_num_groups")},
        **{name: getattr(KL, name) for name in ("scaling_factor", "shift_factor")},
    }
    (folder / CONFIG).write_text(json.dumps(described))
    return folder
