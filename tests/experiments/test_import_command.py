"""Runs made of the reference's checkpoints and of safetensors files: the same numbers, open to the other commands."""

import dataclasses
import functools
import importlib
import json
import math
import os
import pathlib
import pickle
import re
import subprocess
import sys
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import PIL.Image
import pytest
from safetensors.numpy import save_file

import eqx_shortcut
import published
import quick
import torchfiles
from commands import in_process
from eqx_shortcut import reference, settings
from eqx_shortcut.checkpoint import Checkpoints
from eqx_shortcut.commands import weights
from eqx_shortcut.data import Digits
from eqx_shortcut.experiment.config import Config
from eqx_shortcut.experiment.initial import adopted, check_teacher
from eqx_shortcut.experiment.log import read_lines
from eqx_shortcut.guidance import Guided
from eqx_shortcut.models import DiTConfig, NetworkField
from eqx_shortcut.models.dit import DiT
from eqx_shortcut.models.layers import position_table
from eqx_shortcut.objectives import (
    ESC,
    ConsistencyDistillation,
    Diffusion,
    FlowMatching,
    ImprovedMeanFlow,
    LiveReflow,
    MeanFlow,
    Objective,
    Shortcut,
)
from eqx_shortcut.optimizer import AdamW
from eqx_shortcut.reference import safetensors
from eqx_shortcut.train import TrainState, init_state
from scripts import program

command = importlib.import_module("eqx_shortcut.commands.import")  # the name of a command, and a word of the language
CONFIG, SHAPE, CLASSES = DiTConfig(hidden=8, depth=2, heads=2, mlp_ratio=2), (4, 4, 1), 3


def named(seed: int) -> dict[str, np.ndarray]:
    shapes = jax.eval_shape(lambda key: reference.to_parameters(DiT(CONFIG, SHAPE, CLASSES, key=key)), jax.random.key(0))
    rng = np.random.default_rng(seed)
    return {name: 0.3 * rng.random(leaf.shape, np.float32) for name, leaf in shapes.items()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A checkpoint as the reference's saver leaves it."""
    params, average, mu, nu = (reference.nested(named(seed)) for seed in range(4))
    count = np.asarray(5, np.int32)
    adam = optax.ScaleByAdamState(count, mu, nu)
    opt_state = ((adam, optax.EmptyState(), optax.ScaleByScheduleState(count)),)
    state = {"params": params, "params_ema": average, "opt_state": opt_state, "step": 6}
    folder = tmp_path_factory.mktemp("saved") / "model6"
    folder.mkdir()
    (folder / "model6.tmp").write_bytes(pickle.dumps({"train_state": state, "_timestamp": 0.0}, 4))
    return folder


def imported(checkpoint: pathlib.Path, run: pathlib.Path, objective: Objective) -> pathlib.Path:
    config = command.Config(checkpoint, run, "original", objective=objective, size=4, heads=2, seed=3)  # pyright: ignore
    command.main(config)
    return run


@pytest.fixture(scope="module")
def run(checkpoint: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return imported(checkpoint, tmp_path_factory.mktemp("runs") / "celeba" / "one", FlowMatching(steps=4))


def state_of(run: pathlib.Path) -> TrainState:
    """All that the run's checkpoint holds, with the structure that its settings describe."""
    record = settings.read(run / "config.json")
    network, tx = settings.parse(record["network"]), settings.parse(record["optimizer"]).build(1)
    like = init_state(lambda key: network.build(tuple(record["shape"]), record["classes"], key=key), tx, jax.random.key(0))
    checkpoints = Checkpoints(run / "checkpoints")
    restored = checkpoints.restore(like)
    checkpoints.close()
    assert restored is not None and restored[1:] == ({}, [])
    return restored[0]


def assert_named(network: DiT, expected: dict[str, np.ndarray]) -> None:
    for name, value in reference.to_parameters(network).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_an_imported_run_holds_the_checkpoints_numbers(run):
    state = state_of(run)
    assert_named(state.networks.online, named(0))
    assert_named(state.networks.ema, named(1))
    assert_named(state.opt_state[0].mu, named(2))
    assert_named(state.opt_state[0].nu, named(3))
    assert (int(state.step), int(state.opt_state[0].count), int(state.opt_state[2].count)) == (5, 5, 5)
    assert jax.numpy.array_equal(jax.random.key_data(state.key), jax.random.key_data(jax.random.key(3)))


def test_the_record_holds_what_is_known_and_no_more(run):
    record = settings.read(run / "config.json")
    assert set(record) == {"experiment", "version", "shape", "classes", "network", "objective", "optimizer"}
    assert (record["experiment"], record["shape"], record["classes"]) == ("celeba", [4, 4, 1], 3)
    assert settings.parse(record["objective"]) == FlowMatching(steps=4)
    assert settings.parse(record["optimizer"]) == AdamW()


@pytest.mark.parametrize(
    ("objective", "step"), [(Shortcut(), "log2"), (LiveReflow(), "log2"), (FlowMatching(), "none")], ids=["s", "l", "f"]
)
def test_the_step_is_seen_where_the_reference_shows_it(checkpoint, tmp_path, objective, step):
    model = eqx_shortcut.load(imported(checkpoint, tmp_path / "run", objective))
    assert model.network.config.step == step and model.objective == objective
    assert_named(model.network, named(1))
    images = eqx_shortcut.sample(model, jax.random.key(0), 2, steps=2)
    assert images.shape == (2, *SHAPE) and jax.numpy.isfinite(images).all()


def call(script: str, *args: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, *program(script), *map(str, args)]
    return subprocess.run(line, env=os.environ | {"XLA_FLAGS": quick.FLAGS}, capture_output=True, text=True, timeout=240)


def test_commands_import_and_sample(checkpoint, tmp_path):
    made = call("import", checkpoint, "--out", tmp_path / "run", "--size", 4, "--heads", 2, "objective:shortcut")
    assert made.returncode == 0, made.stderr
    first, second = made.stdout.splitlines()
    count = sum(value.size for value in named(0).values())
    assert f"{count:,} parameters (width 8, depth 2, heads 2, patch 2; 3 classes) after step 5" in first
    assert second.endswith(f"eqx-shortcut sample {tmp_path / 'run'}")
    drawn = call("sample", tmp_path / "run", "--steps", 1, "--count", 2, "--out", tmp_path / "grid.png")
    assert drawn.returncode == 0, drawn.stderr
    with PIL.Image.open(tmp_path / "grid.png") as picture:
        assert picture.width > 64


def test_commands_fail_in_one_sentence(checkpoint, run, tmp_path):
    again = call("import", checkpoint, "--out", run, "--size", 4, "--heads", 2)
    assert (
        again.returncode == 1 and again.stderr == f"error: {run} exists already: name another run folder, or remove that one\n"
    )
    other = call("weights", "import", checkpoint / "model6.tmp", tmp_path / "run")
    assert other.returncode == 1 and other.stderr.startswith("error: ") and other.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def refused(config: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        command.main(config)
    assert not config.out.exists()


def test_what_cannot_be_imported_leaves_no_folder(checkpoint, tmp_path):
    run = tmp_path / "run"
    refused(command.Config(checkpoint, run, size=4), "give it with --heads")
    refused(command.Config(checkpoint, run, size=5, heads=2), "not divisible by patch=2")
    refused(command.Config(checkpoint, run, size=4, heads=2, optimizer=AdamW(clip=1)), "without gradient clipping")
    refused(command.Config(tmp_path / "absent", run, "original"), "no checkpoint")


@pytest.mark.parametrize(("which", "seed"), [("online", 0), ("ema", 1)])
def test_weights_go_out_and_come_back(run, tmp_path, which, seed):
    file, copy = tmp_path / "n.safetensors", tmp_path / "runs" / "copy"
    weights.main(weights.Export(run, file, weights=which))
    weights.main(weights.Import(file, copy))
    state = state_of(copy)
    assert_named(state.networks.online, named(seed))
    assert_named(state.networks.ema, named(seed))
    assert int(state.step) == 5 and int(state.opt_state[0].count) == 0
    moments = jax.tree.leaves(eqx.filter(state.opt_state[0], eqx.is_inexact_array))
    assert moments and all(not leaf.any() for leaf in moments)
    model, original = eqx_shortcut.load(copy), eqx_shortcut.load(run, weights=which)
    assert (model.objective, model.step, model.shape, model.classes) == (FlowMatching(steps=4), 5, SHAPE, CLASSES)
    assert model.network.config == original.network.config


def test_noise_and_hidden_labels_of_training_come_back(run, tmp_path, monkeypatch):
    """The run from the file samples from the noise that the network learnt."""
    original = dataclasses.replace(eqx_shortcut.load(run), noise_scale=2.0, labelled=False)
    with monkeypatch.context() as patch:
        patch.setattr("eqx_shortcut.trained.load", lambda *_, **__: original)
        weights.main(weights.Export(run, tmp_path / "n.safetensors"))
        with pytest.raises(
            ValueError, match=r"begins at noise of standard deviation 2, which the code of SiT, .*--to safetens"
        ):
            weights.main(weights.Export(run, tmp_path / "n.pt", to="torch"))
    weights.main(weights.Import(tmp_path / "n.safetensors", tmp_path / "copy"))
    found = eqx_shortcut.load(tmp_path / "copy")
    assert (found.noise_scale, found.labelled) == (2.0, False)


def test_noise_of_another_path_stays(run, tmp_path, monkeypatch):
    """What SiT's code would take for a velocity."""
    model = dataclasses.replace(eqx_shortcut.load(run), objective=Diffusion())
    monkeypatch.setattr("eqx_shortcut.trained.load", lambda *_, **__: model)
    with pytest.raises(ValueError, match=r"answers noise of a path of its own, which the code of SiT, .*--to safetensors"):
        weights.main(weights.Export(run, tmp_path / "n.safetensors", to="torch"))
    assert not list(tmp_path.iterdir())


def test_weights_of_unknown_training_are_refused(tmp_path):
    network = DiT(CONFIG, SHAPE, CLASSES, key=jax.random.key(0))
    safetensors.save(tmp_path / "n.safetensors", network, {"step": 1})
    with pytest.raises(ValueError, match="does not tell objective and step"):
        weights.main(weights.Import(tmp_path / "n.safetensors", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


SHAPES = published.shapes("transformer_shapes.json")
SMALL = SHAPES["small"]


@pytest.fixture(scope="module")
def sit(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A file as SiT's authors publish it."""
    table = position_table(published.WIDTH, 4, 4)[None]
    file = tmp_path_factory.mktemp("files") / "SiT.pt"
    file.write_bytes(torchfiles.archive({**published.weights(SMALL), "pos_embed": table}))
    return file


def test_a_sit_becomes_a_run_that_samples_and_goes_out_again(sit, tmp_path, capsys):
    run = tmp_path / "runs" / "sit"
    command.main(command.Config(sit, run, "sit", heads=published.HEADS))
    count = sum(math.prod(shape) for shape in SMALL.values()) + 16 * published.WIDTH  # with the table of positions
    assert f"sit; {count:,} parameters (width 24, depth 2, heads 2, patch 2; 5 classes)" in capsys.readouterr().out
    model = eqx_shortcut.load(run)
    assert (model.shape, model.classes, model.objective) == ((8, 8, 4), 5, FlowMatching())
    with np.load(published.GOLDEN / "transformers.npz") as file:
        expected = file["sit"]
    x, t, labels = map(jax.numpy.asarray, (published.images(), published.T, published.LABELS))
    np.testing.assert_allclose(model.field(x, t, jax.numpy.ones(4), labels), expected, rtol=0, atol=2e-4)
    assert jax.numpy.isfinite(eqx_shortcut.sample(model, jax.random.key(0), 2, steps=2)).all()
    state = state_of(run)
    for a, b in zip(jax.tree.leaves(state.networks.online), jax.tree.leaves(state.networks.ema), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_dit_becomes_a_run_of_velocities(sit, tmp_path):
    command.main(command.Config(sit, tmp_path / "dit", "dit", heads=published.HEADS))
    model = eqx_shortcut.load(tmp_path / "dit")
    assert model.network.config.predict == "noise" and model.objective == FlowMatching()
    assert jax.numpy.isfinite(eqx_shortcut.sample(model, jax.random.key(0), 2, steps=2)).all()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run of a DiT of digits, with its learned variances."""
    sizes = {"x_embedder.proj.weight": (24, 1, 2, 2), "y_embedder.embedding_table.weight": (11, 24)}
    sizes |= {"final_layer.linear.weight": (8, 24), "final_layer.linear.bias": (8,)}
    folder = tmp_path_factory.mktemp("taught")
    save_file(published.weights(SMALL | sizes), folder / "DiT.safetensors")
    told = ["--from", "dit", "--out", str(folder / "dit"), "--size", "8", "--heads", "2"]
    assert in_process("import", [str(folder / "DiT.safetensors"), *told])[0] == 0
    return folder / "dit"


def test_a_dit_may_teach_and_its_student_begins_there(teacher):
    """At every step size as at the only one that the DiT was told."""
    taught, objective = eqx_shortcut.load(teacher), ConsistencyDistillation()
    check_teacher(Config(Digits(), taught.network.config, objective, AdamW(), 1, teacher=teacher), taught, teacher)
    config = dataclasses.replace(taught.network.config, step="log2")
    fresh = eqx.filter_jit(config.build)(taught.shape, taught.classes, key=jax.random.key(1))
    student, answer = NetworkField(adopted(fresh, taught, teacher)), eqx.filter_jit(lambda field, *given: field(*given))
    x, t, labels = (jax.numpy.asarray(a) for a in (published.images()[..., :1], published.T, published.LABELS))
    expected = answer(taught.field, x, t, jax.numpy.ones(4), labels)
    assert expected.std() > 0.5
    for d in (1 / 128, 1.0):
        np.testing.assert_allclose(answer(student, x, t, jax.numpy.full(4, d), labels), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "step", "options"),
    [
        ("consistency-distillation", "log2", []),
        ("lagrangian", "linear", ["--objective.distil", "--objective.bootstrap-every", "4"]),
    ],
)
def test_a_dit_teaches(teacher, tmp_path, objective, step, options):
    """Its noise is the velocity that it teaches, and its weights are where the other begins."""
    network = {"hidden": 24, "depth": 2, "heads": 2, "patch": 2, "mlp-ratio": 4, "embed-scale": 1}
    network |= {"logits": "root", "predict": "noise", "step": step}
    args = [f"objective:{objective}", *options, "--teacher", str(teacher), "--runs", str(tmp_path), "--optimizer.lr", "1e-3"]
    args += [word for name, value in network.items() for word in (f"--network.{name}", str(value))]
    args += "--steps 2 --batch 8 --log-every 1 --quality.steps --figures.batches 0 --sample-every 1000".split()
    code, out, err = in_process("digits", args)
    assert code == 0, err
    assert f"teacher and first weights: {teacher} after step 1" in out
    run = tmp_path / "digits" / objective
    assert all(np.isfinite(line["loss"]) for line in read_lines(run / "metrics.jsonl"))
    taught, student = eqx_shortcut.load(teacher).network, eqx_shortcut.load(run, weights="online").network
    moved = [float(np.abs(a - b).max()) for a, b in zip(taught.blocks.qkv.kernel, student.blocks.qkv.kernel, strict=True)]
    assert 0 < min(moved) and max(moved) < 0.01


def test_a_published_file_of_another_kind_leaves_no_folder(sit, tmp_path):
    run = tmp_path / "run"
    refused(command.Config(sit, run, heads=2), "--from sit or --from dit")
    refused(command.Config(sit, run, "sit"), "give it with --heads")
    refused(command.Config(sit, run, "original"), "cannot be read")
    refused(command.Config(sit, run, "sit", heads=5), "not divisible by heads=5")


class Executed:
    """What makes a folder when pickle reads it."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def half_a_state(path: pathlib.Path) -> None:
    write_state(path, "meanflow")
    for file in path.rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def parts(path: pathlib.Path) -> None:
    path.mkdir()
    config = {"_class_name": "DiTTransformer2DModel", "num_attention_heads": 2, "sample_size": 8}
    (path / "config.json").write_text(json.dumps(config))
    (path / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")


def cut(tensors: dict[str, np.ndarray], path: pathlib.Path) -> None:
    save_file(tensors, path)
    path.write_bytes(path.read_bytes()[:-100])


SPREAD = {"ema": {"x": torchfiles.Name("torch.distributed.tensor", "DTensor")}}
FILES = {
    "another family": (lambda p: save_file({"conv_in.weight": np.ones((4, 4))}, p), "lack x_embedder.proj.weight"),
    "ESC for SiT": (
        lambda p: save_file(published.weights(SHAPES["esc"]), p),
        "--from sit, and the names .* are of esc: say that",
    ),
    "another size": (
        lambda p: save_file(published.weights({**SMALL, "t_embedder.mlp.2.bias": (7,)}), p),
        r"t_embedder.mlp.2.bias has shape \(7,\), the architecture asks for \(24,\)",
    ),
    "another side": (lambda p: save_file({**published.weights(SMALL), "pos_embed": np.ones((1, 9, 24))}, p), "images of 6 x 6"),
    "truncated.pt": (
        lambda p: p.write_bytes(torchfiles.archive(published.weights(SMALL))[:9999]),
        "cannot be read as a file of",
    ),
    "truncated": (lambda p: cut(published.weights(SMALL), p), "cannot be read as safetensors .*: copy it again"),
    "truncated state": (half_a_state, "cannot be read as a state of MeanFlow"),
    "executable": (lambda p: p.write_bytes(pickle.dumps({"ema": Executed(p.with_name("ran"))}, 2)), "cannot be read"),
    "DTensor": (lambda p: p.write_bytes(torchfiles.archive(content=SPREAD)), "spread over devices .* gather the weights"),
    "all.index.json": (lambda p: p.write_text("{}"), "cut into several files: gather the weights"),
    "parts": (parts, "holds parts of a network: gather the weights"),
    "no average": (
        lambda p: p.write_bytes(torchfiles.archive(content={"model": torchfiles.tensors(published.weights(SMALL))})),
        "holds model and no ema weights: use --weights online",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_what_it_should_be_is_one_sentence(tmp_path, name):
    """By the command; no run is made, and nothing of the file is run."""
    write, said = FILES[name]
    write(tmp_path / name)
    told = ["--from", "sit", "--size", "8", "--heads", "2", "--out", str(tmp_path / "run")]
    code, _, err = in_process("import", [str(tmp_path / name), *told])
    assert code == 1 and err.startswith("error: ") and err.count("\n") == 1
    assert re.search(said, err), err
    assert {path.name for path in tmp_path.iterdir()} == {name}


def write_esc(path: pathlib.Path) -> None:
    """A file as ESC's train.py leaves it, but for its optimizer."""
    both = {name: torchfiles.tensors(published.weights(SHAPES["esc"], seed)) for name, seed in (("model", 1), ("ema", 0))}
    for number, tensor in enumerate([*both["model"].values(), *both["ema"].values()]):
        tensor.call[0].key = str(number)
    path.write_bytes(torchfiles.archive(content={**both, "model_tgt": both["model"], "steps": 3}))


def write_state(path: pathlib.Path, kind: str) -> None:
    tree: dict = {}
    for name, value in published.weights(SHAPES[kind]).items():
        *groups, last = name.split("/")
        functools.reduce(lambda at, group: at.setdefault(group, {}), groups, tree)[last] = value
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
        writer.save(path, {"ema_params": {"net": tree}})


@pytest.mark.parametrize(
    ("kind", "objective"),
    [pytest.param("meanflow", MeanFlow, marks=pytest.mark.slow), ("esc", ESC), ("imf", ImprovedMeanFlow)],
)
def test_networks_of_average_velocities_become_runs(tmp_path, capsys, kind, objective):
    """Told by the names of their tensors."""
    path = tmp_path / "checkpoint_1"
    write_esc(path) if kind == "esc" else write_state(path, kind)
    command.main(command.Config(path, tmp_path / "run", heads=published.HEADS, size=published.SIZE))
    assert f"{kind}, took {'ema, not model' if kind == 'esc' else 'ema_params of checkpoint_1'}; " in capsys.readouterr().out
    model = eqx_shortcut.load(tmp_path / "run")
    assert isinstance(model.objective, objective)
    steps = eqx_shortcut.Sampling(1, guidance=4.0) if kind == "imf" else 1
    drawn = eqx_shortcut.sample(model, jax.random.key(0), 4, steps, labels=published.LABELS)
    noise = eqx_shortcut.trained.noise(model, jax.random.key(0), jax.numpy.arange(4))
    asked = jax.numpy.asarray(published.LABELS)
    asked = Guided(asked, *(jax.numpy.full(4, value) for value in (4.0, 0.0, 1.0))) if kind == "imf" else asked
    expected = noise + NetworkField(model.network)(noise, jax.numpy.zeros(4), jax.numpy.ones(4), asked)
    np.testing.assert_allclose(drawn, expected, atol=1e-4)


def test_a_network_without_names_elsewhere_stays(tmp_path):
    model = eqx_shortcut.trained.Trained(object(), FlowMatching(), SHAPE, CLASSES, 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eqx_shortcut.trained.load", lambda *_, **__: model)
        with pytest.raises(ValueError, match="holds a object, whose tensors have no names elsewhere: keep its run"):
            weights.main(weights.Export(tmp_path, tmp_path / "n.safetensors"))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_flow_model_goes_out_by_the_command_and_comes_back(sit, tmp_path):
    run, file, back = tmp_path / "sit", tmp_path / "out.safetensors", tmp_path / "back"
    command.main(command.Config(sit, run, "sit", heads=published.HEADS))
    weights.main(weights.Export(run, file, to="torch"))
    command.main(command.Config(file, back, "sit", heads=published.HEADS))
    for a, b in zip(*(jax.tree.leaves(eqx_shortcut.load(one).network) for one in (run, back)), strict=True):
        np.testing.assert_array_equal(a, b)
    weights.main(weights.Export(run, tmp_path / "folder", to="diffusers"))
    assert {path.name for path in (tmp_path / "folder").iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
