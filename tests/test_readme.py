"""The README's program runs as printed, and does what it says."""

import dataclasses
import re

import jax
import jax.numpy as jnp
from conftest import ROOT


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
    import config

    fields = {field.name.replace("_", "-") for field in dataclasses.fields(config.Config)}
    table = re.search(r"\| options \|.*?\n\n", (ROOT / "README.md").read_text(), re.DOTALL)
    assert table is not None
    rows = [row for row in table[0].splitlines() if row.startswith("|")]
    named = {name for row in rows for name in re.findall(r"--([a-z]+(?:-[a-z]+)*)", row.split("|")[1])}
    assert named == fields
