"""Files of published transformers: what is taken of them, and one sentence for each that cannot be; nothing of one is run."""

import argparse
import functools
import json
import os
import pathlib
import pickle

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import save_file

import published
import torchfiles
from eqx_shortcut.pretrained.transformer_files import kind_of, network_of, read_published
from eqx_shortcut.pretrained.transformers import POSITIONS, from_flax, to_diffusers
from torchfiles import Name

SHAPES = published.shapes("transformer_shapes.json")


@functools.cache
def weights(seed: int = 0) -> dict[str, np.ndarray]:
    return published.weights(SHAPES["small"], seed)


class Executed:
    """What runs a command when pickle reads it."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def training() -> dict:
    """A checkpoint as SiT's train.py saves it, but for its options."""
    numbers = {"step": 3, "exp_avg": torchfiles.tensors({"m": np.ones(2, np.float32)})["m"]}
    both = {"model": torchfiles.tensors(weights(1)), "ema": torchfiles.tensors(weights())}
    # Storages of one file have keys of their own.
    for number, tensor in enumerate([*both["model"].values(), *both["ema"].values(), numbers["exp_avg"]]):
        tensor.call[0].key = str(number)
    return {**both, "opt": {"state": {0: numbers}, "param_groups": [{"lr": 1e-4, "params": [0]}]}}


@pytest.fixture
def stored(tmp_path):
    def store(data: bytes, name: str = "weights.pt") -> pathlib.Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return store


def assert_same(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("write", [torchfiles.archive, torchfiles.row])
def test_of_both_copies_one_is_taken_and_said(stored, write):
    path = stored(write(content=training()))
    average, last = read_published(path), read_published(path, "online")
    assert_same(average.tensors, weights())
    assert_same(last.tensors, weights(1))
    assert (average.note, last.note) == ("took ema, not model", "took model, not ema")


def test_what_torch_itself_writes_in_training_is_read(tmp_path):
    """As DiT's and SiT's train.py have it: both copies, an optimizer that has made a step, the script's options."""
    torch = pytest.importorskip("torch", reason="pip install 'eqx_shortcut[parity]'")
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    options = argparse.Namespace(model="SiT-XL/2", cfg_scale=4.0, image_size=256, sample=True, vae=None)
    content = {"model": network.state_dict(), "ema": torch.nn.Linear(3, 2).half().state_dict(), "opt": optimizer.state_dict()}
    torch.save({**content, "args": options}, tmp_path / "0000001.pt")
    found = read_published(tmp_path / "0000001.pt")
    assert_same(found.tensors, {name: value.numpy() for name, value in content["ema"].items()})
    assert found.note == "took ema, not model"


def test_a_copy_that_is_not_there_is_said(stored):
    content = {"model": torchfiles.tensors(weights())}
    path = stored(torchfiles.archive(content=content))
    with pytest.raises(ValueError, match="holds model and no ema weights: use --weights online"):
        read_published(path)
    assert read_published(path, "online").note == "took model"


def test_names_of_wrapped_networks_are_unwrapped(stored):
    path = stored(torchfiles.archive({f"module._orig_mod.{name}": value for name, value in weights().items()}))
    assert_same(read_published(path).tensors, weights())


def test_half_precision_is_read(tmp_path):
    import ml_dtypes

    half = {name: value.astype(ml_dtypes.bfloat16) for name, value in weights().items()}
    save_file(half, tmp_path / "half.safetensors")
    assert_same(read_published(tmp_path / "half.safetensors").tensors, half)


@pytest.fixture
def folder(tmp_path):
    """A pipeline of diffusers."""
    made = tmp_path / "transformer"
    made.mkdir()
    config = {"_class_name": "DiTTransformer2DModel", "num_attention_heads": 2, "sample_size": 8}
    (made / "config.json").write_text(json.dumps(config))
    save_file(to_diffusers(weights()), made / "diffusion_pytorch_model.safetensors")
    return tmp_path


def test_a_folder_of_diffusers_tells_heads_and_size(folder):
    found = read_published(folder)
    assert_same(found.tensors, weights())
    assert (found.kind, found.heads, found.size) == ("dit", 2, 8)
    assert kind_of(found, None) == kind_of(found, "sit").replace("sit", "dit") == "dit"


def test_parts_of_a_network_are_refused(folder, stored):
    whole = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    whole.rename(whole.with_name("diffusion_pytorch_model-00001-of-00002.safetensors"))
    whole.with_name(f"{whole.name}.index.json").write_text("{}")
    with pytest.raises(ValueError, match="holds parts of a network: gather the weights"):
        read_published(folder)
    with pytest.raises(ValueError, match="cut into several files"):
        read_published(stored(b"{}", "model.safetensors.index.json"))


def test_another_class_of_diffusers_is_refused(folder):
    (folder / "transformer" / "config.json").write_text(
        json.dumps({"_class_name": "FluxTransformer2DModel", "num_attention_heads": 2, "sample_size": 8})
    )
    with pytest.raises(ValueError, match="describes 'FluxTransformer2DModel'"):
        read_published(folder)


def test_a_config_of_diffusers_without_heads_is_named(folder):
    config = {"_class_name": "DiTTransformer2DModel", "num_attention_heads": None, "sample_size": 8}
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    told = r"holds no config\.json of diffusers' DiTTransformer2DModel \(TypeError.*: name the folder of one"
    with pytest.raises(ValueError, match=told):
        read_published(folder)


def test_sit_and_dit_have_to_be_told_apart(stored):
    found = read_published(stored(torchfiles.archive(weights())))
    with pytest.raises(ValueError, match="--from sit or --from dit"):
        kind_of(found, None)
    with pytest.raises(ValueError, match="are of sit or dit"):
        kind_of(found, "meanflow")
    assert kind_of(found, "dit") == "dit"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.98])
def test_a_file_cut_short_is_refused(stored, share):
    data = torchfiles.archive(weights())
    with pytest.raises(ValueError, match="cannot be read as a file of torch"):
        read_published(stored(data[: int(share * len(data))]))


def test_nothing_of_a_file_is_run(stored, tmp_path):
    data = pickle.dumps({"ema": Executed(tmp_path / "ran")}, 2)
    for path in (stored(data), stored(torchfiles.archive(content={"ema": {"a": Name("os", "system")}}), "b.pt")):
        with pytest.raises(ValueError):
            read_published(path)
    assert not (tmp_path / "ran").exists()


def test_spread_tensors_are_refused(stored):
    content = {"ema": {"x": Name("torch.distributed.tensor", "DTensor")}}
    with pytest.raises(ValueError, match=r"spread over devices \(DTensor\): gather the weights"):
        read_published(stored(torchfiles.archive(content=content)))


def test_positions_come_along(stored):
    table = {POSITIONS: np.zeros((1, 16, 24), np.float32)}
    assert POSITIONS in read_published(stored(torchfiles.archive({**weights(), **table}))).tensors


def nested(parameters: dict[str, np.ndarray]) -> dict:
    tree: dict = {}
    for name, value in parameters.items():
        *groups, last = name.split("/")
        functools.reduce(lambda at, group: at.setdefault(group, {}), groups, tree)[last] = value
    return tree


@pytest.fixture(scope="module")
def state(tmp_path_factory) -> pathlib.Path:
    """A folder of states as flax's save_checkpoint leaves it, the newest with what MeanFlow's holds."""
    folder = tmp_path_factory.mktemp("saved")
    both = {
        name: {"net": nested(published.weights(SHAPES["meanflow"], seed))} for name, seed in (("params", 1), ("ema_params", 0))
    }
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
        writer.save(folder / "checkpoint_9", {"params": {"other": np.ones(2)}})
        writer.save(folder / "checkpoint_10", {"step": 10, "opt_state": [{"mu": both["params"]}, None], **both})
    (folder / "checkpoint_11.orbax-checkpoint-tmp-3").mkdir()  # a save that was interrupted
    return folder


@pytest.mark.parametrize(("copy", "name", "seed"), [("ema", "ema_params", 0), ("online", "params", 1)])
def test_a_state_of_mean_flow_is_read(state, copy, name, seed):
    found = read_published(state, copy)
    assert_same(found.tensors, from_flax(published.weights(SHAPES["meanflow"], seed)))
    assert (found.kind, found.note) == ("meanflow", f"took {name} of checkpoint_10")


def test_a_state_of_something_else_is_refused(state):
    with pytest.raises(ValueError, match="cannot be read as a state of MeanFlow, whose ema_params hold a net"):
        read_published(state / "checkpoint_9")


def test_a_state_of_improved_mean_flow_is_told_by_its_names(tmp_path):
    weights = published.weights(SHAPES["imf"])
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
        writer.save(tmp_path / "checkpoint_1", {"ema_params": {"net": nested(weights)}})
    found = read_published(tmp_path)
    assert_same(found.tensors, weights)
    assert kind_of(found, None) == "imf"
    network = network_of(found, "imf", key=jax.random.key(0), size=published.SIZE, heads=published.HEADS)
    assert (network.shape, network.classes) == ((8, 8, 4), 5)
    with pytest.raises(ValueError, match="--from sit, and the names of its tensors are of imf"):
        kind_of(found, "sit")
