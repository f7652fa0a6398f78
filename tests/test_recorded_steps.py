"""One training step of every objective, plain and with its options: metrics, gradients and weights stay as recorded.

In double precision, so that they depend on what is computed and not on the order in which a compiler adds. Recorded at 0.1.0
with JAX 0.10.2. `JAX_ENABLE_X64=1 python tests/test_recorded_steps.py FILE CASE...` records these cases anew in FILE and keeps
the others bit for bit; without a case, all.

Recorded anew since, because what they do by default was changed. By these options they are what they were:
- "lagrangian", "terminal-velocity", "progressive-map" learn a weight: `log_variance=False`.
- "eulerian" lets its gradient through time, too: `stop_tangent=True`.
- "eulerian/options" stops it in space: `stop_space=False`.

No option makes these what they were. With the lines named here put back, each was:
- "so-flow", "so-flow/options": three distributions of times, `eps` beside a mean, steps count half, and no limit. Was
  `losses.alpha_flow` at its times and `clip=4`.
- "esc": the share to the data falls as an arccosine (was linear), and `eps=1e-3` (was 0.01).
- "esc/options", "mean-flow/options", "improved-mean-flow/options": labels drop in rows of `d = 0` alone, for guidance is inside
  (`drop_steps=True` of `Intervals.draw` was before); the first has the arccosine, too.
- "mid-training": the last step of its teacher's path is Euler's (`last=False` of `steps.heun_step`).
"""

import pathlib
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eqx_shortcut import Batch
from eqx_shortcut.guidance import Guided
from eqx_shortcut.objectives import (
    ESC,
    OBJECTIVES,
    AlphaFlow,
    ConsistencyDistillation,
    ConsistencyTraining,
    ContinuousConsistency,
    Diffusion,
    Drifting,
    Eulerian,
    FlowMatching,
    Frechet,
    ImprovedMeanFlow,
    InductiveMomentMatching,
    Lagrangian,
    LiveReflow,
    MeanFlow,
    MidTraining,
    Objective,
    ProgressiveDistillation,
    ProgressiveMap,
    Reward,
    Shortcut,
    SinkhornFlow,
    SoFlow,
    SplitMeanFlow,
    TerminalVelocity,
)
from eqx_shortcut.train import init_state, make_step

GOLDEN = pathlib.Path(__file__).parent / "golden" / "steps.npz"
N, SIZE, CLASSES, WIDTH = 24, 3, 4, 5
STEP, STEPS = 4, 10

PAIRS: dict[str, Any] = {"guidance": 2.0, "mix": 0.25, "interval": (0.1, 0.8), "label_dropout": 0.5, "eps": 0.1, "to_data": 0.3}
LINES: dict[str, Any] = {"time_mean": -0.3, "time_std": 0.5, **PAIRS}
GUIDED: dict[str, Any] = {"guidance": 2.0, "clip": 0.5}
CASES: dict[str, Objective] = {
    "flow-matching": FlowMatching(steps=8),
    "flow-matching/options": FlowMatching(steps=8, label_dropout=0.5),
    "shortcut": Shortcut(steps=8, bootstrap_every=4),
    "shortcut/options": Shortcut(
        steps=8, bootstrap_every=2, bootstrap_ema=False, guide_all=True, dt_bias=True, label_dropout=0.5, **GUIDED
    ),
    "progressive-distillation": ProgressiveDistillation(steps=8),
    "progressive-distillation/options": ProgressiveDistillation(steps=8, teacher_ema=False, **GUIDED),
    "consistency-distillation": ConsistencyDistillation(steps=8),
    "consistency-distillation/options": ConsistencyDistillation(steps=8, **GUIDED),
    "consistency-training": ConsistencyTraining(steps=8),
    "live-reflow": LiveReflow(steps=8, bootstrap_every=4, rollout=3),
    "live-reflow/options": LiveReflow(steps=8, bootstrap_every=2, rollout=2, guidance=2.0, label_dropout=0.5),
    "diffusion": Diffusion(steps=8),
    "diffusion/options": Diffusion(steps=8, label_dropout=0.5, clip=0.5),
    "mean-flow": MeanFlow(),
    "mean-flow/options": MeanFlow(power=0.5, uniform_velocity=True, posterior_every=2, log_variance=True, **LINES),
    "mean-flow/differences": MeanFlow(finite_difference=0.1),
    "mean-flow/taught": MeanFlow(distil=True, max_scale=3.0),
    "mid-training": MidTraining(rollout=4, guidance=2.0),
    "esc": ESC(),
    "esc/options": ESC(power=0.5, bootstrap_every=2, **LINES),
    "improved-mean-flow": ImprovedMeanFlow(),
    "improved-mean-flow/options": ImprovedMeanFlow(max_scale=5.0, intervals=True, velocity_head=True),
    "alpha-flow": AlphaFlow(),
    "alpha-flow/options": AlphaFlow(start=0.1, stop=0.9, clip=0.5, **LINES),
    "split-mean-flow": SplitMeanFlow(),
    "split-mean-flow/options": SplitMeanFlow(power=1.0, clip=0.5, **LINES),
    "so-flow": SoFlow(),
    "so-flow/options": SoFlow(first=0.3, clip=0.5, **LINES),
    "lagrangian": Lagrangian(),
    "lagrangian/options": Lagrangian(target_ema=True, power=1.0, log_variance=True, **PAIRS),
    "terminal-velocity": TerminalVelocity(),
    "terminal-velocity/options": TerminalVelocity(gap_mean=0.5, gap_std=0.3, target_ema=False, log_variance=True, **PAIRS),
    "eulerian": Eulerian(),
    "eulerian/options": Eulerian(stop_tangent=False, log_variance=True, power=1.0, **PAIRS),
    "progressive-map": ProgressiveMap(),
    "progressive-map/options": ProgressiveMap(share=None, target_ema=True, log_variance=True, **PAIRS),
    "continuous-consistency": ContinuousConsistency(),
    "continuous-consistency/options": ContinuousConsistency(
        distil=True, std=0.7, normalise=0.2, guidance=2.0, log_variance=False, warmup_share=0.8
    ),
    "sinkhorn-flow": SinkhornFlow(),
    "sinkhorn-flow/options": SinkhornFlow(groups=3, epsilon=0.2, iterations=5, exponent=2.0, guidance=2.0),
    "frechet": Frechet(),
    "reward": Reward(score="test_recorded_steps:total", groups=2),
    "inductive-moment-matching": InductiveMomentMatching(),
    "inductive-moment-matching/options": InductiveMomentMatching(particles=3, halvings=5, to_data=0.3, label_dropout=0.5),
    "drifting": Drifting(),
    "drifting/options": Drifting(groups=3, temperatures=(0.1, 0.5), guidance=2.0),
}


def total(x, cond):
    """A reward."""
    return jnp.sum(x, axis=1)


class Small(eqx.Module):
    """A network of one example: a hidden layer under a dropout mask, told label and guidance, and two heads."""

    inputs: jax.Array
    labels: jax.Array
    head: jax.Array
    other: jax.Array

    @property
    def velocity(self):
        return eqx.tree_at(lambda network: network.head, self, self.other)

    def __call__(self, x, t, d, cond, *, key=None):
        told = jnp.zeros(3)
        if isinstance(cond, Guided):
            cond, told = cond.cond, jnp.stack([cond.scale / 5, cond.start, cond.stop])
        seen = jnp.concatenate([x, jnp.stack([t, d]), told])
        hidden = jnp.tanh(self.inputs @ seen + self.labels[cond])
        mask = 1.0 if key is None else jax.random.bernoulli(key, 0.8, hidden.shape).astype(hidden.dtype)
        return self.head @ (mask * hidden)


def small(seed: int) -> Small:
    """Weights from NumPy's generator, the same in every version of JAX."""
    shapes = (WIDTH, SIZE + 5), (CLASSES + 1, WIDTH), (SIZE, WIDTH), (SIZE, WIDTH)
    rng = np.random.default_rng(seed)
    return Small(*(jnp.asarray(0.6 * rng.standard_normal(shape), float) for shape in shapes))


def stepped(objective: Objective) -> tuple[dict[str, float], list[np.ndarray], list[np.ndarray]]:
    """Metrics, gradient and new weights of step 5 of 10, by leaf; average and teacher are networks of their own."""
    tx, rng = optax.sgd(0.1, momentum=0.5), np.random.default_rng(7)
    teacher = objective.stages > 0
    state = init_state(
        lambda _: small(0),
        tx,
        jax.random.key(0),
        teacher=teacher,
        extra=objective.extra,
        null=CLASSES,
        memory=objective.memory((SIZE,)),
    )
    state = eqx.tree_at(lambda s: (s.step, s.networks.ema), state, (jnp.int32(STEP), small(1)))
    state = eqx.tree_at(lambda s: s.networks.teacher, state, small(2)) if teacher else state
    raw = jnp.asarray(rng.standard_normal((N, SIZE)), float), jnp.arange(N) % CLASSES
    step = make_step(objective, tx, prepare=lambda raw, key: Batch(*raw), ema_decay=0.9, steps=STEPS)
    state, metrics = step(state, raw)
    gradient, weights = (
        [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
        for tree in (state.opt_state, eqx.filter(state.networks.trained, eqx.is_inexact_array))
    )
    return {name: float(value) for name, value in metrics.items()}, gradient, weights


def recording(objective: Objective) -> dict[str, np.ndarray]:
    """What is kept of a step: names and values of its metrics, and the leaves of gradient and weights end to end."""
    metrics, gradient, weights = stepped(objective)
    return {
        "names": np.array(sorted(metrics)),
        "metrics": np.array([metrics[name] for name in sorted(metrics)]),
        "gradient": np.concatenate([leaf.ravel() for leaf in gradient]),
        "weights": np.concatenate([leaf.ravel() for leaf in weights]),
    }


def record(file: pathlib.Path, cases: list[str]) -> None:
    """Writes the recordings of these cases, or of all, and keeps what else is in the file."""
    kept = dict(np.load(file)) if cases else {}
    found = {f"{case}/{name}": value for case in cases or CASES for name, value in recording(CASES[case]).items()}
    np.savez_compressed(file, **kept | found)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return dict(file)


def test_every_objective_is_recorded():
    names = {type(objective).__name__ for objective in CASES.values()}
    assert {kind.__name__ for kind in OBJECTIVES.values()} == names


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_what_it_was(recorded, x64, case):
    """Each leaf to a billionth of its norm."""
    metrics, *trees = stepped(CASES[case])
    assert sorted(metrics) == recorded[f"{case}/names"].tolist()
    expected = recorded[f"{case}/metrics"]
    np.testing.assert_allclose([metrics[name] for name in sorted(metrics)], expected, rtol=1e-9, atol=1e-12)
    for name, leaves in zip(("gradient", "weights"), trees, strict=True):
        ends = np.cumsum([leaf.size for leaf in leaves])
        for leaf, kept in zip(leaves, np.split(recorded[f"{case}/{name}"], ends)[:-1], strict=True):
            np.testing.assert_allclose(leaf.ravel(), kept, rtol=0, atol=1e-9 * float(np.linalg.norm(kept)))


if __name__ == "__main__":
    record(pathlib.Path(sys.argv[1]), sys.argv[2:])
