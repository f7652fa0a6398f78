"""Samplers of one trained run at equal cost: distances of its samples by evaluations of the network, not by steps.

    python experiments/evaluations.py runs/compare/fashion-mnist/fashion_mnist/flow-matching-0 --out flow-matching.json
    python experiments/evaluations.py runs/compare/fashion-mnist/fashion_mnist/continuous-consistency-from-flow-0 --out sct.json

A run that teaches a velocity is sampled by Euler's steps, Heun's and the midpoint rule's in 4, 8, 16 and 32 evaluations (Heun's
in one less); a consistency model by one jump to the data, and by two: from the middle of the times, and from 1.1 of the
trigonometric path, where its authors put the point between. Distances are as in compare.py, of 1,000 samples of the same noise.
"""

import dataclasses
import json
import pathlib
from typing import Annotated

from eqx_shortcut.interrupts import interruptible

with interruptible():
    import tyro

    from eqx_shortcut import ranges
    from eqx_shortcut.cli import check_out, command
    from eqx_shortcut.ranges import Several

EVALUATIONS = (4, 8, 16, 32)
MIDDLE = 1.1
"""The angle of the point between, of pi/2."""


@dataclasses.dataclass(frozen=True)
class Config(ranges.Checked):
    """Distances by sampler and number of evaluations."""

    run: Annotated[pathlib.Path, tyro.conf.Positional]
    """Folder of a run on images."""
    out: pathlib.Path
    """File to write."""
    features: str = "experiments/features/fashion_mnist.safetensors"
    """Features in which samples are judged beside pixels."""
    count: Several = 1000
    """Samples of each (2 or more)."""


def main(config: Config) -> None:
    """Draws and judges the samples of each sampler, writes the file after each and prints the table."""
    import jax
    import numpy as np

    import eqx_shortcut
    from eqx_shortcut import rng, settings
    from eqx_shortcut.evaluate.parts import Measuring
    from eqx_shortcut.experiment.judging import Measures
    from eqx_shortcut.sampling import Sampling

    check_out(config.out, ".json")
    model, record = eqx_shortcut.load(config.run), settings.read(config.run / "config.json")
    train, _ = settings.parse(record["data"]).build()
    others = Measuring(features=config.features, neighbours=config.count)
    measures = Measures(train, others=others, source=record["data"], folder=config.run / "evaluation")
    assert measures.features is not None
    judge, labels, rows = measures.features.name, np.resize(train.labels, config.count), []
    print("| sampler | steps | evaluations | features | pixels |\n|---|---|---|---|---|")
    for name, sampler, steps, evaluations in samplers_of(model.objective):
        chosen = jax.numpy.asarray(labels)
        sampling = Sampling(steps, sampler=sampler)
        samples = eqx_shortcut.sample(model, rng.key(0), config.count, sampling, labels=chosen)
        if (found := measures([np.asarray(samples)], labels)) is None:
            raise ValueError(f"{config.run}: samples of {name} in {steps} steps are not finite: choose a run that has learnt")
        row = {"sampler": name, "steps": steps, "evaluations": evaluations, **found}
        rows.append(row)
        config.out.write_text(json.dumps({"run": config.run.name, "results": rows}, indent=1) + "\n")
        distances = f"{row[judge]:.3g} | {row['frechet']:.3g}"
        print(f"| {name} | {steps} | {evaluations} | {distances} |", flush=True)


def samplers_of(objective):
    """Name, sampler, steps and evaluations of each that suits an objective."""
    from eqx_shortcut import samplers
    from eqx_shortcut.objectives import ContinuousConsistency

    if isinstance(objective, ContinuousConsistency):
        middle = samplers.Through((0, samplers.trigonometric_time(MIDDLE, objective.std), 1))
        jumps = samplers.Sampler(samplers.consistency)
        return [
            ("one jump", jumps, 1, 1),
            ("two jumps, equal steps", jumps, 2, 2),
            (f"two jumps, at {MIDDLE} of the trigonometric path", samplers.Sampler(samplers.consistency, middle), 2, 2),
        ]
    costs = {samplers.euler: (1, 0), samplers.heun: (2, 1), samplers.midpoint: (2, 0)}  # a step's, and how many less the last
    return [
        (run.__name__, samplers.Sampler(run), total // cost, total // cost * cost - less)
        for total in EVALUATIONS
        for run, (cost, less) in costs.items()
    ]


if __name__ == "__main__":
    command(main, Config, __doc__)
