"""The README's program runs as printed, and does what it says."""

import dataclasses
import pathlib
import re
import typing

import jax
import jax.numpy as jnp

ROOT = pathlib.Path(__file__).parents[1]


def test_program_learns_one_step_moons():
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as a reader has them
        exec(compile(program, "README.md", "exec"), names)
    means = [names["one_step"][label::2].mean(0) for label in (0, 1)]
    # The upper moon (label 0) and the lower one, from one step; an average over both would lie between.
    assert means[0][1] > 0.3 and means[1][1] < -0.3
    radius = jnp.linalg.norm(names["one_step"][::2] - jnp.array([[-0.5, -0.2]]), axis=1)
    assert jnp.abs(radius - 1).mean() < 0.2


def test_options_table_names_options_that_exist():
    from eqx_shortcut.data import LatentImages
    from eqx_shortcut.experiment import config

    fields = {field.name.replace("_", "-") for kind in (config.Config, LatentImages) for field in dataclasses.fields(kind)}
    fields -= {"images", "classes"}  # the first are offered as data:KIND, the second is no option
    table = re.search(r"\| options \|.*?\n\n", (ROOT / "README.md").read_text(), re.DOTALL)
    assert table is not None
    rows = [row for row in table[0].splitlines() if row.startswith("|")]
    named = {name for row in rows for name in re.findall(r"--([a-z]+(?:-[a-z]+)*)", row.split("|")[1])}
    assert named == fields


def options(kind: type, prefix: str = "") -> set[str]:
    """Every option of a dataclass of settings, nested ones with their prefix, those of unions for each member."""
    found = set()
    for name, hint in typing.get_type_hints(kind).items():
        option = f"{prefix}{name.replace('_', '-')}"
        members = [part for part in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(part)]
        found |= {option}.union(*(options(member, f"{option}.") for member in members if isinstance(member, type)))
    return found


def test_flag_table_names_options_that_exist_and_every_flag_of_the_original():
    from eqx_shortcut.commands import evaluate, sample
    from eqx_shortcut.experiment import config
    from eqx_shortcut.models import DiTConfig

    table = re.search(r"\| flag there \|.*?\n\n", (ROOT / "README.md").read_text(), re.DOTALL)
    assert table is not None
    rows = [row.split("|") for row in table[0].splitlines() if row.startswith("|")]
    methods = typing.get_args(config.AnyObjective)
    known = {"network", "objective", "data.*"}.union(
        options(DiTConfig, "network."),
        *(options(typing.get_args(method)[0], "objective.") for method in methods),
        *(options(kind) for kind in (config.Config, sample.Config, evaluate.Config)),
    )
    assert {name for row in rows for name in re.findall(r"--([a-z]+[a-z0-9.*-]*)", row[2])} <= known
    there = " ".join(row[1] for row in rows)
    missing = [flag for flag in ORIGINAL.split() if not re.search(rf"\b{flag}\b", there)]
    assert not missing


ORIGINAL = """
    dataset_name load_dir save_dir fid_stats seed log_interval eval_interval save_interval batch_size max_steps debug_overfit
    mode inference interpolate inference_timesteps inference_generations inference_cfg_scale
    lr beta1 beta2 weight_decay use_cosine warmup dropout hidden_size patch_size depth num_heads mlp_ratio class_dropout_prob
    num_classes denoise_timesteps cfg_scale target_update_rate use_ema use_stable_vae sharding bootstrap_cfg bootstrap_every
    bootstrap_ema bootstrap_dt_bias t_sampling dt_sampling train_type project name group entity run_id offline
"""
