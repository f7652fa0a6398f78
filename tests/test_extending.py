"""The programs of docs/extending are the ones tested: what they make is trained, opened again and sampled."""

import dataclasses
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqx_shortcut

ROOT = pathlib.Path(__file__).parents[1]
PROGRAMS = {path.name: path.read_text() for path in sorted((ROOT / "tests" / "birds").glob("*.py"))}


def test_the_pages_show_the_programs_that_are_tested():
    pages = "".join(path.read_text() for path in sorted((ROOT / "docs" / "extending").glob("*.md")))
    assert dict(re.findall(r"`(\w+\.py)`\n\n```python\n(.*?)```", pages, re.DOTALL)) == PROGRAMS
    assert pages.count("```python") == len(PROGRAMS)


@pytest.fixture
def user(tmp_path, monkeypatch):
    """A function that imports a program of the pages from the user's folder, which is the current one."""
    for name, text in PROGRAMS.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__
    for name in PROGRAMS:
        sys.modules.pop(name.removesuffix(".py"), None)


def test_the_policy_is_trained_and_acts_on_what_is_seen(user):
    rng = np.random.default_rng(0)
    rows = {"actions": (64, 16, 2), "position": (64, 2), "velocity": (64, 2)}
    np.savez("demonstrations.npz", **{k: rng.normal(size=shape).astype(np.float32) for k, shape in rows.items()})
    policy = user("policy")
    small = dataclasses.replace(policy.POLICY.network, width=8)
    policy.EXPERIMENT.run(dataclasses.replace(policy.POLICY, network=small, steps=2, batch=32))
    model = eqx_shortcut.load("runs/policy/shortcut")
    seen = [{"position": np.full(2, value, np.float32), "velocity": np.zeros(2, np.float32)} for value in (0.0, 3.0)]
    still, far = (eqx_shortcut.sample(model, jax.random.key(0), 1, conditions=one) for one in seen)
    assert still.shape == (1, 16, 2) and not np.allclose(still, far)


def test_the_loss_is_what_its_docstring_says(user, key):
    huber_flow = user("huber_loss").huber_flow
    batch = eqx_shortcut.Batch(jnp.array([[1.0, -3.0], [0.5, 2.0]]), noise=jnp.array([[0.0, 1.0], [4.0, 0.0]]))
    loss, metrics = huber_flow(lambda x, t, d, cond: jnp.zeros_like(x), batch, key, c=2.0)
    v = np.array([[1.0, -4.0], [-3.5, 2.0]])  # a field of 0 errs by the velocity, up to the share 1e-5 of noise at the data
    square = (v**2).mean(1)
    np.testing.assert_allclose(loss, (np.sqrt(square + 4.0) - 2.0).mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["loss_flow"], square.mean(), rtol=1e-4)


def test_the_objective_is_trained_opened_again_and_sampled(user, one_device):
    huber = user("huber")
    small = dataclasses.replace(huber.NETWORK, hidden=8, depth=1, heads=1)
    quality = dataclasses.replace(huber.HUBER.quality, steps=())
    figures = dataclasses.replace(huber.HUBER.figures, batches=0)
    chosen = huber.EXPERIMENT.parse(["--objective.c", "0.5", "--steps", "2"])
    assert chosen.objective.c == 0.5
    huber.EXPERIMENT.run(dataclasses.replace(chosen, network=small, batch=8, quality=quality, figures=figures))
    model = eqx_shortcut.load("runs/huber/huber-flow")
    assert eqx_shortcut.sample(model, jax.random.key(0), 2, steps=2, labels=7).shape == (2, 8, 8, 1)
