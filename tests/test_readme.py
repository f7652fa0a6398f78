"""The README's program runs as printed, and does what it says."""

import pathlib
import re

import jax
import jax.numpy as jnp

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_program_learns_one_step_moons():
    (program,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as a reader has them
        exec(compile(program, "README.md", "exec"), names)
    means = [names["one_step"][label::2].mean(0) for label in (0, 1)]
    # The upper moon (label 0) and the lower one, from one step; an average over both would lie between.
    assert means[0][1] > 0.3 and means[1][1] < -0.3
    radius = jnp.linalg.norm(names["one_step"][::2] - jnp.array([[-0.5, -0.2]]), axis=1)
    assert jnp.abs(radius - 1).mean() < 0.2


def test_every_objective_is_in_the_table_of_methods():
    from eqx_shortcut import losses
    from eqx_shortcut.experiment.config import AnyObjective
    from eqx_shortcut.experiment.main import members

    table = README[README.index("| `objective:NAME` | loss | paper |") :].partition("\n\n")[0]
    rows = [row.split("|") for row in table.splitlines()[2:]]
    named = [[name for row in rows for name in re.findall(r"`([\w-]+)`", row[column])] for column in (1, 2)]
    assert sorted(named[0]) == sorted(members(AnyObjective))
    assert all(callable(getattr(losses, name)) for name in named[1])


def test_it_is_short():
    assert len(README.splitlines()) <= 250 and len(README.split()) <= 2200
