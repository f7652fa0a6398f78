"""Every method by its command: from a teacher, from other weights, on pairs; continued without the teacher; refused."""

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro

import eqx_shortcut
from commands import in_process, snapshot
from eqx_shortcut import settings
from eqx_shortcut.checkpoint import Checkpoints
from eqx_shortcut.data import Digits, read_pairs
from eqx_shortcut.experiment.checks import check
from eqx_shortcut.experiment.config import AnyObjective, Config, Figures
from eqx_shortcut.experiment.log import read_lines
from eqx_shortcut.models import DiTConfig
from eqx_shortcut.objectives import ImprovedMeanFlow, named
from eqx_shortcut.optimizer import AdamW
from eqx_shortcut.train import TrainState, init_state

STEPS, EVERY = 6, 3
TINY = (
    "--network.hidden 16 --network.depth 1 --network.heads 2 --network.remat none --batch 16 --quality.count 16 "
    f"--quality.steps 1 2 --steps {STEPS} --checkpoint.every {EVERY} --sample-every 1000 --log-every 1 "
    "--figures.batches 0"
).split()
FOUR = ["--objective.steps", "4"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("methods")


def digits(base: pathlib.Path, objective: str, *args: str) -> tuple[int, str, str]:
    """At four steps, unless told otherwise."""
    four = [] if "--objective.steps" in args else FOUR
    return in_process("digits", [f"objective:{objective}", *TINY, *four, "--runs", str(base), *args])


def run(base: pathlib.Path, objective: str, *args: str) -> tuple[pathlib.Path, str]:
    """The folder of a run that must succeed, and what it printed."""
    code, out, err = digits(base, objective, *args)
    assert code == 0, err
    return base / "digits" / (args[args.index("--name") + 1] if "--name" in args else objective), out


@pytest.fixture(scope="module")
def flow(base: pathlib.Path) -> pathlib.Path:
    """A run of flow matching; do not change it."""
    return run(base, "flow-matching")[0]


@pytest.fixture(scope="module")
def progressive(base: pathlib.Path, flow: pathlib.Path) -> tuple[pathlib.Path, str, pathlib.Path]:
    """A progressive distillation, what it printed, and the folder of its teacher: a copy, which may be moved."""
    teacher = pathlib.Path(shutil.copytree(flow, base / "teacher"))
    folder, out = run(base, "progressive-distillation", "--teacher", str(teacher))
    return folder, out, teacher


def arrays(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))]


def assert_equal(one: Any, other: Any) -> None:
    for a, b in zip(arrays(one), arrays(other), strict=True):
        np.testing.assert_array_equal(a, b)


def state_of(folder: pathlib.Path, tmp_path: pathlib.Path, step: int) -> TrainState:
    """The state in one checkpoint."""
    shutil.copytree(folder / "checkpoints" / str(step), tmp_path / f"of {step}" / str(step))
    record = settings.read(folder / "config.json")
    network, objective = settings.parse(record["network"]), settings.parse(record["objective"])
    build = lambda key: network.build(tuple(record["shape"]), record["classes"], key=key)  # noqa: E731
    tx = settings.parse(record["optimizer"]).build(record["steps"])
    like = init_state(build, tx, jax.random.key(0), teacher=objective.stages > 0)
    checkpoints = Checkpoints(tmp_path / f"of {step}")
    found = checkpoints.restore(like)
    checkpoints.close()
    assert found is not None
    return found[0]


def check_run(folder: pathlib.Path) -> None:
    """Trained to its end with finite losses, judged, and sampled from as loaded."""
    assert [line["step"] for line in read_lines(folder / "metrics.jsonl")] == list(range(1, STEPS + 1))
    assert all(np.isfinite(line["loss"]) for line in read_lines(folder / "metrics.jsonl"))
    quality = json.loads((folder / "evaluation.json").read_text())
    assert all(np.isfinite(row["measures"]["frechet"]) and row["training step"] == STEPS for row in quality["results"])
    assert eqx_shortcut.load(folder).step == STEPS


def test_progressive_distillation_starts_from_its_teacher_and_renews_it_half_way(flow, progressive, tmp_path):
    folder, out, teacher = progressive
    assert f"teacher and first weights: {teacher} after step {STEPS}" in out
    check_run(folder)
    first, last = (state_of(folder, tmp_path, step).networks for step in (EVERY, STEPS))
    # After three of six steps the second of two stages begins.
    assert_equal(first.teacher, first.ema)
    assert_equal(last.teacher, first.ema)
    held = eqx_shortcut.load(flow).network.held_at(1 / 4)
    assert all(np.abs(a - b).max() < 0.1 for a, b in zip(arrays(first.teacher), arrays(held), strict=True))
    assert not np.array_equal(arrays(last.ema)[0], arrays(first.ema)[0])


def test_a_distillation_goes_on_to_the_bit_after_its_teacher_is_gone(progressive, tmp_path):
    folder, _, teacher = progressive
    cut = pathlib.Path(shutil.copytree(folder, tmp_path / "digits" / folder.name))
    shutil.rmtree(cut / "checkpoints" / str(STEPS))
    moved = teacher.rename(tmp_path / "elsewhere")
    again, out = run(tmp_path, "progressive-distillation", "--teacher", str(teacher))
    moved.rename(teacher)
    assert again == cut and f"continuing after step {EVERY}" in out
    for name in ("metrics.jsonl", "evaluation.json"):
        assert (cut / name).read_bytes() == (folder / name).read_bytes()
    assert_equal(state_of(cut, tmp_path / "cut", STEPS), state_of(folder, tmp_path / "whole", STEPS))


OTHERS = {
    "consistency-distillation": ("--teacher", ["--objective.guidance", "2"], "teacher and first weights"),
    "consistency-training": ("--init-from", ["--unconditional"], "first weights"),
    "live-reflow": ("--init-from", ["--objective.bootstrap-every", "2"], "first weights"),
}


@pytest.mark.parametrize(
    "objective", ["consistency-distillation", *(pytest.param(name, marks=pytest.mark.slow) for name in list(OTHERS)[1:])]
)
def test_a_method_starts_from_a_run_of_flow_matching(base, flow, objective):
    flag, args, words = OTHERS[objective]
    folder, out = run(base, objective, flag, str(flow), *args)
    assert f"{words}: {flow} after step {STEPS}" in out
    check_run(folder)
    assert eqx_shortcut.load(folder).labelled is ("--unconditional" not in args)


@pytest.fixture(scope="module")
def diffusion(base: pathlib.Path) -> pathlib.Path:
    return run(base, "diffusion")[0]


def test_diffusion_is_trained_and_sampled(diffusion):
    check_run(diffusion)


# At continuous step sizes


CONTINUOUS = (
    "mean-flow improved-mean-flow esc alpha-flow split-mean-flow so-flow lagrangian terminal-velocity eulerian progressive-map "
    "continuous-consistency inductive-moment-matching"
).split()


@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_method_at_continuous_step_sizes_is_a_subcommand_and_refused_where_the_step_embedding_is_infinite(name):
    """And it comes back from the record of a run, whose folder is named after it."""
    objective = tyro.cli(AnyObjective, args=[name])  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert settings.parse(json.loads(json.dumps(settings.dump(objective)))) == objective
    config = Config(data=Digits(), network=DiTConfig(), objective=objective, optimizer=AdamW(), batch=32)
    assert named(type(config.objective)) == name
    with pytest.raises(ValueError, match=r"continuous step sizes, 0 included, .* use --network.step linear"):
        check(config)
    check(dataclasses.replace(config, network=DiTConfig(step="linear")))


@pytest.mark.parametrize(
    ("objective", "network", "said"),
    [
        ({"max_scale": 4.0}, {}, "scale of its guidance, .* --network.guided none has no input: use --network.guided scale"),
        ({"max_scale": 4.0, "intervals": True}, {"guided": "scale"}, "interval of .*: use --network.guided interval"),
        ({"velocity_head": True}, {}, "second head, which the network does not have: use --network.velocity-head"),
        ({"max_scale": 1.5}, {"guided": "scale"}, "guidance 2 is not in 1 to 1.5, the scales that the network is told"),
    ],
)
def test_an_objective_is_refused_a_network_without_what_it_needs_and_a_scale_it_does_not_know(objective, network, said):
    config = Config(
        data=Digits(),
        network=DiTConfig(step="linear", **network),
        objective=ImprovedMeanFlow(**objective),
        optimizer=AdamW(),
        batch=32,
        figures=Figures(guidance=2.0),
    )
    with pytest.raises(ValueError, match=said):
        check(config)
    needed = dataclasses.replace(config, network=DiTConfig(step="linear", guided="interval", velocity_head=True))
    check(dataclasses.replace(needed, figures=Figures()))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_method_at_continuous_step_sizes_is_trained_and_sampled(tmp_path, name):
    linear = ["--network.step", "linear", "--network.dropout", "0.1"]
    code, _, err = in_process("digits", [f"objective:{name}", *TINY, *linear, "--runs", str(tmp_path)])
    assert code == 0, err
    check_run(tmp_path / "digits" / name)


@pytest.mark.slow
def test_a_network_that_is_told_its_guidance_is_trained_drawn_and_sampled_by_commands(tmp_path):
    """With a second head, held-out losses and guided pictures on the way."""
    told = "--objective.max-scale 4 --objective.intervals --objective.velocity-head --quality.guidance 2 --figures.guidance 3"
    needs = "--network.step linear --network.guided interval --network.velocity-head --sample-every 6"
    tiny = [*TINY[: TINY.index("--sample-every")], "--figures.batches", "1", "--figures.times", "1"]
    code, _, err = in_process(
        "digits", ["objective:improved-mean-flow", *tiny, *told.split(), *needs.split(), "--runs", str(tmp_path)]
    )
    assert code == 0, err
    folder = tmp_path / "digits" / "improved-mean-flow"
    assert any(path.name.endswith("_guided.png") for path in (folder / "samples").iterdir())
    assert "validation/loss_velocity" in read_lines(folder / "metrics.jsonl")[-1]
    for scale, words in (
        (4, "guidance 4"),
        (9, "guidance 9 is not in 1 to 4, the scales that the network is told in training"),
    ):
        draw = ["--steps", "1", "--count", "2", "--guidance", str(scale), "--out", str(tmp_path / "x.png")]
        code, out, err = in_process("sample", [str(folder), *draw])
        assert code == (scale > 4) and words in out + err


# Pairs


def make(flow: pathlib.Path, out: pathlib.Path, *args: str) -> tuple[int, str, str]:
    line = "--count 40 --steps 4 --batch 16 --shard 16".split()
    return in_process("pairs", [str(flow), "--out", str(out), *line, *args])


@pytest.fixture(scope="module")
def pairs(base: pathlib.Path, flow: pathlib.Path) -> pathlib.Path:
    """Forty pairs of the run of flow matching; do not change them."""
    code, _, err = make(flow, base / "pairs")
    assert code == 0, err
    return base / "pairs"


def test_reflow_is_flow_matching_on_pairs(base, flow, pairs):
    folder, out = run(base, "flow-matching", "--name", "reflow", "--pairs", str(pairs), "--init-from", str(flow))
    assert "40 pairs" in out
    check_run(folder)


def test_pairs_are_the_noise_and_the_samples_of_the_run(flow, pairs):
    found, model = read_pairs(pairs, (8, 8, 1)), eqx_shortcut.load(flow)
    key = jax.random.key(1)
    np.testing.assert_array_equal(found.labels, np.arange(40) % 10)
    np.testing.assert_allclose(found.x, eqx_shortcut.sample(model, key, 40, steps=4), rtol=2**-10, atol=1e-4)
    expected = jnp.stack([jax.random.normal(jax.random.fold_in(key, i), (8, 8, 1)) for i in (0, 17, 39)])
    np.testing.assert_allclose(found.noise[[0, 17, 39]], expected, rtol=2**-10, atol=1e-6)


def test_pairs_interrupted_and_repeated_are_the_same_files(flow, pairs, tmp_path):
    before = snapshot(pairs)
    out = pathlib.Path(shutil.copytree(pairs, tmp_path / "pairs"))
    (out / "00001.npz").unlink()
    kept = (out / "00000.npz").stat().st_mtime_ns
    assert make(flow, out)[0] == 0
    assert snapshot(out) == before and (out / "00000.npz").stat().st_mtime_ns == kept


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--steps", "2"], "holds other pairs: steps is 2, there it is 4. Repeat their settings, or name another --out"),
        (["--count", "0"], "error: --count 0: use 1 or more"),
    ],
)
def test_pairs_that_contradict_the_folder_are_refused(flow, pairs, args, words):
    before = snapshot(pairs)
    code, _, err = make(flow, pairs, *args)
    assert code in (1, 2) and words in " ".join(err.replace("│", " ").split())
    assert snapshot(pairs) == before


def test_guidance_that_does_not_apply_is_refused_before_pairs_are_made(progressive, tmp_path):
    code, _, err = make(progressive[0], tmp_path / "out", "--guidance", "2")
    assert code == 1 and "--guidance 2.0 does not apply to" in err and "leave it at 1" in err
    assert not (tmp_path / "out").exists()


# Refused


def refused(base: pathlib.Path, tmp_path: pathlib.Path, case: str) -> tuple[str, list[str], str]:
    """Objective, arguments and what the sentence says."""
    flow, empty = base / "digits" / "flow-matching", tmp_path / "empty"
    untrained = tmp_path / "untrained"
    if case == "no checkpoint":
        untrained.mkdir()
        shutil.copy(flow / "config.json", untrained)
    return {
        "no teacher": ("progressive-distillation", [], "ProgressiveDistillation distils a trained network and none is named"),
        "no run": ("consistency-distillation", ["--teacher", str(empty)], f"{empty} is not a run folder"),
        "no checkpoint": ("consistency-distillation", ["--teacher", str(untrained)], "no checkpoint in"),
        "diffusion": (
            "progressive-distillation",
            ["--teacher", str(base / "digits" / "diffusion")],
            "was trained by Diffusion and knows no velocity to teach",
        ),
        "other steps": (
            "progressive-distillation",
            ["--teacher", str(flow), "--objective.steps", "8"],
            "was trained with steps=4 and would be asked at d = 1/8: use --objective.steps 4",
        ),
        "other network": (
            "consistency-distillation",
            ["--teacher", str(flow), "--network.depth", "2"],
            "has another network (depth is 1 there, 2 here): use the same --network options",
        ),
        "teacher for none": ("live-reflow", ["--teacher", str(flow)], "LiveReflow has no teacher: leave out --teacher"),
        "no pairs": ("flow-matching", ["--pairs", str(empty)], f"{empty} holds no pairs"),
    }[case]


CASES = ["no teacher", "no run", "no checkpoint", "diffusion", "other steps", "other network", "teacher for none", "no pairs"]


@pytest.mark.parametrize("case", CASES)
def test_a_start_that_cannot_be_is_refused_in_one_sentence(base, flow, diffusion, case, tmp_path):
    objective, args, words = refused(base, tmp_path, case)
    code, _, err = digits(tmp_path / "runs", objective, *args)
    assert code == 1 and words in err and err.strip().splitlines()[-1].startswith("error: ")


def test_a_refused_start_leaves_nothing_behind_and_the_command_put_right_is_accepted(flow, tmp_path):
    teacher = ["--teacher", str(flow)]
    assert digits(tmp_path, "consistency-distillation", *teacher, "--objective.steps", "8")[0] == 1
    assert list(tmp_path.rglob("*")) == []


# Folders of runs


def test_settings_that_a_run_leaves_out_are_settled_by_the_first_command(base, flow, tmp_path):
    """As an imported run leaves them out; and a stored objective without a field that came later is the same objective."""
    folder = pathlib.Path(shutil.copytree(flow, tmp_path / "digits" / "flow-matching"))
    record = settings.read(folder / "config.json")
    stored = {name: record[name] for name in ("experiment", "version", "shape", "classes", "network", "objective", "optimizer")}
    stored["objective"] = {k: v for k, v in stored["objective"].items() if k != "label_dropout"}
    (folder / "config.json").write_text(json.dumps(stored))
    _, out = run(tmp_path, "flow-matching")
    assert f"continuing after step {STEPS}" in out
    assert settings.read(folder / "config.json") == record
    code, _, err = digits(tmp_path, "flow-matching", "--seed", "5")
    assert code == 1 and "seed is 5, there it is 0" in err
