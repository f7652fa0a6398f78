"""The autoencoders against the libraries that define them, with random weights; `pip install -e ".[parity]"` brings those."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import dcaes
import raes
from eqx_shortcut.pretrained.autoencoder_configs import dcae_config
from eqx_shortcut.pretrained.autoencoder_files import _dcae_names, load_autoencoder, torch_shape
from eqx_shortcut.pretrained.dcae import DCAE
from eqx_shortcut.pretrained.rae_files import rae_config, rae_names, rae_tensors
from eqx_shortcut.pretrained.sdvae import SDVAE
from eqx_shortcut.pretrained.taesd import TAESD, TAESDConfig
from torch_build import load

REASON = "needs torch, diffusers and transformers: install the extra `parity`"
torch = pytest.importorskip("torch", reason=REASON)
pytest.importorskip("diffusers", reason=REASON)
diffusers = load("diffusers")

TOLERANCE = 2e-4
SMALL = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "latent_channels": 3,
    "norm_num_groups": 4,
    "sample_size": 8,
}
FULL = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 256,
}


def randomised(module):
    """The module with all parameters moved, so that neither norms nor biases are trivial."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter) if parameter.ndim == 1 else 0)
    return module.eval()


def images(side: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (1, side, side, 3)).astype(np.float32)


def nchw(array):
    return torch.from_numpy(np.array(array).transpose(0, 3, 1, 2).copy())


def nhwc(tensor) -> np.ndarray:
    return tensor.detach().numpy().transpose(0, 2, 3, 1)


def largest(found, expected) -> float:
    return float(np.abs(np.asarray(found) - expected).max())


@pytest.mark.parametrize(
    ("settings", "side"),
    [
        pytest.param(SMALL, 16, id="small"),
        pytest.param({**SMALL, "use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.1}, 16, id="plain"),
        pytest.param(FULL, 64, id="full", marks=pytest.mark.slow),
    ],
)
def test_sdvae_is_autoencoder_kl(settings, side, tmp_path):
    theirs = randomised(diffusers.AutoencoderKL(**settings))
    theirs.save_pretrained(tmp_path)
    ours = load_autoencoder(tmp_path)
    assert isinstance(ours, SDVAE)
    x = images(side)
    with torch.no_grad():
        expected = theirs.encode(nchw(x)).latent_dist
        latents = nhwc(expected.mean)
        decoded = nhwc(theirs.decode(expected.mean).sample)
    found = eqx.filter_jit(ours.encode)(jnp.asarray(x[0]))
    assert largest(found.mean, latents[0]) <= TOLERANCE
    assert largest(found.log_variance, nhwc(expected.logvar)[0]) <= TOLERANCE
    assert largest(eqx.filter_jit(ours.decode)(jnp.asarray(latents[0])), decoded[0]) <= TOLERANCE
    key = jax.random.key(0)
    noise = np.asarray(jax.random.normal(key, latents.shape[1:]))
    assert largest(found.sample(key), latents[0] + nhwc(expected.std)[0] * noise) <= TOLERANCE


def test_taesd_is_autoencoder_tiny(tmp_path):
    theirs = randomised(diffusers.AutoencoderTiny(latent_channels=16))
    theirs.save_pretrained(tmp_path)
    ours = load_autoencoder(tmp_path)
    assert isinstance(ours, TAESD)
    x = images(32)
    with torch.no_grad():
        latents = nhwc(theirs.encode(nchw(x)).latents)
        # Large latents show where the decoder bends them.
        decoded = nhwc(theirs.decode(nchw(3 * latents)).sample)
    assert largest(ours.encode(jnp.asarray(x[0])).mean, latents[0]) <= TOLERANCE
    assert largest(ours.decode(jnp.asarray(3 * latents[0])), decoded[0]) <= TOLERANCE


@pytest.mark.parametrize(
    ("config", "sides"),
    [
        *(pytest.param(config, (16, 24), id=name) for name, config in dcaes.SMALL.items()),
        *(pytest.param(config, (8, 8), id=f"{name}, few pixels") for name, config in dcaes.SMALL.items()),
        pytest.param(dcaes.PUBLISHED["dc-ae-f32c32-in-1.0"], (192, 224), id="full", marks=pytest.mark.slow),
    ],
)
def test_dcae_is_autoencoder_dc(config, sides, tmp_path):
    """Whose attention computes products of pixels where these are fewer than the channels of a head."""
    theirs = randomised(diffusers.AutoencoderDC(**config))
    with torch.no_grad():
        for at, moment in theirs.named_buffers():
            if "running" in at:
                moment.add_(torch.rand_like(moment))
    theirs.save_pretrained(tmp_path)
    ours = load_autoencoder(tmp_path)
    assert isinstance(ours, DCAE)
    x = dcaes.image(*sides)
    with torch.no_grad():
        latents = theirs.encode(nchw(x[None])).latent
        decoded = nhwc(theirs.decode(latents).sample)
    assert largest(eqx.filter_jit(ours.encode)(jnp.asarray(x)).mean, nhwc(latents)[0]) <= TOLERANCE
    assert largest(eqx.filter_jit(ours.decode)(jnp.asarray(nhwc(latents)[0])), decoded[0]) <= TOLERANCE


@pytest.mark.parametrize("name", dcaes.PUBLISHED)
def test_published_dcaes_have_the_names_and_shapes_of_diffusers(name, tmp_path):
    with torch.device("meta"):
        state = diffusers.AutoencoderDC(**dcaes.PUBLISHED[name]).state_dict()
    expected = {at: tuple(value.shape) for at, value in state.items() if not at.endswith("num_batches_tracked")}
    assert dcaes.SHAPES.get(name, expected) == expected
    like = eqx.filter_eval_shape(lambda key: dcae_config(dcaes.PUBLISHED[name]).build(key=key), jax.random.key(0))
    found = {}
    for at, leaf in jax.tree_util.tree_flatten_with_path(eqx.filter(like, lambda leaf: hasattr(leaf, "shape")))[0]:
        shape = torch_shape(leaf.shape)
        given = _dcae_names(jax.tree_util.keystr(at, simple=True, separator="."))[0]
        found[given] = (*shape, 1, 1) if (*shape, 1, 1) == expected.get(given) else shape
    assert found == expected


@pytest.mark.parametrize(("encoder_side", "patch"), [(42, 4), (56, 16)], ids=["enlarged", "reduced"])
def test_rae_is_autoencoder_rae(encoder_side, patch, tmp_path):
    """Whose images are in [0, 1], and whose latents are in the units of training."""
    pytest.importorskip("transformers", reason=REASON)
    config = {name: value for name, value in raes.SMALL.items() if name != "_class_name"}
    theirs = randomised(diffusers.AutoencoderRAE(**config | {"encoder_input_size": encoder_side, "patch_size": patch}))
    theirs.save_pretrained(tmp_path)
    ours = load_autoencoder(tmp_path)
    x = images(encoder_side // 14 * patch)
    with torch.no_grad():
        latents = theirs.encode((nchw(x) + 1) / 2).latent
        decoded = 2 * nhwc(theirs.decode(latents).sample) - 1
    raw = nhwc(latents)[0] / ours.scale
    assert largest(eqx.filter_jit(ours.encode)(jnp.asarray(x[0])).mean, raw) <= TOLERANCE
    assert largest(eqx.filter_jit(ours.decode)(jnp.asarray(raw)), decoded[0]) <= TOLERANCE


def test_the_published_rae_has_the_names_and_shapes_of_diffusers(tmp_path):
    pytest.importorskip("transformers", reason=REASON)
    with torch.device("meta"):
        config = {name: value for name, value in raes.PUBLISHED.items() if name != "_class_name"}
        state = diffusers.AutoencoderRAE(**config).state_dict()
    views = {name: np.broadcast_to(np.float32(0), tuple(value.shape)) for name, value in state.items()}
    settings = rae_config(raes.PUBLISHED)
    given = rae_tensors(views, settings)
    like = eqx.filter_eval_shape(lambda key: settings.build(key=key), jax.random.key(0))
    leaves = jax.tree_util.tree_flatten_with_path(eqx.filter(like, lambda leaf: hasattr(leaf, "shape")))[0]
    found = {rae_names(jax.tree_util.keystr(at, simple=True, separator="."))[0]: torch_shape(leaf.shape) for at, leaf in leaves}
    assert found == {name: value.shape for name, value in given.items()}


def test_the_pooled_block_of_taef2(tmp_path):
    width, latent = 8, 4

    def convolution(inputs, outputs, size=3, **options):
        return torch.nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)

    class Block(torch.nn.Module):
        """One pooled block, as published with the weights."""

        def __init__(self):
            super().__init__()
            relu = torch.nn.ReLU
            threefold = [convolution(width, width), relu(), convolution(width, width), relu(), convolution(width, width)]
            wide, narrow = (convolution(*pair, 1, bias=False) for pair in ((width, 4 * width), (4 * width, width)))
            self.conv = torch.nn.Sequential(*threefold)
            self.pool = torch.nn.Sequential(wide, torch.nn.GroupNorm(4, 4 * width), relu(), narrow)

        def forward(self, x):
            x = x + self.pool(x)
            return torch.relu(self.conv(x) + x)

    encoder = randomised(torch.nn.Sequential(convolution(3, width), Block(), convolution(width, latent)))
    decoder = randomised(
        torch.nn.Sequential(torch.nn.Identity(), convolution(latent, width), torch.nn.ReLU(), Block(), convolution(width, 3))
    )
    for name, half in (("encoder", encoder), ("decoder", decoder)):
        state = {key: value.numpy() for key, value in half.state_dict().items()}
        save_file(state, tmp_path / f"{name}.safetensors")
    ours = load_autoencoder(tmp_path)
    assert isinstance(ours, TAESD) and ours.config == TAESDConfig(latent, width, (1,), (1,), pooled=True)
    x = images(8)
    with torch.no_grad():
        latents = encoder(nchw(x + 1) / 2)
        decoded = nhwc(2 * decoder(3 * torch.tanh(latents / 3)) - 1)
    assert largest(ours.encode(jnp.asarray(x[0])).mean, nhwc(latents)[0]) <= TOLERANCE
    assert largest(ours.decode(jnp.asarray(nhwc(latents)[0])), decoded[0]) <= TOLERANCE
