"""The programs of docs/extending.md are the ones tested, and the policy is trained and acts."""

import dataclasses
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest

import eqx_shortcut

ROOT = pathlib.Path(__file__).parents[1]
PROGRAMS = sorted((ROOT / "tests" / "birds").glob("*.py"))


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_a_program_of_the_page_is_the_one_tested(path):
    assert f"`{path.name}`\n\n```python\n{path.read_text()}```" in (ROOT / "docs" / "extending.md").read_text()


def test_the_policy_is_trained_and_acts_on_what_is_seen(tmp_path, monkeypatch):
    for name in ("policy.py", "policy_parts.py"):
        shutil.copy(ROOT / "tests" / "birds" / name, tmp_path)
    rng = np.random.default_rng(0)
    rows = {"actions": (64, 16, 2), "position": (64, 2), "velocity": (64, 2)}
    np.savez(tmp_path / "demonstrations.npz", **{k: rng.normal(size=shape).astype(np.float32) for k, shape in rows.items()})
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    policy = __import__("policy")
    try:
        small = dataclasses.replace(policy.POLICY.network, width=8)
        policy.EXPERIMENT.run(dataclasses.replace(policy.POLICY, network=small, steps=2, batch=32))
        model = eqx_shortcut.load("runs/policy/shortcut")
        seen = [{"position": np.full(2, value, np.float32), "velocity": np.zeros(2, np.float32)} for value in (0.0, 3.0)]
        still, far = (eqx_shortcut.sample(model, jax.random.key(0), 1, conditions=one) for one in seen)
    finally:
        for name in ("policy", "policy_parts"):
            sys.modules.pop(name, None)
    assert still.shape == (1, 16, 2) and not np.allclose(still, far)
