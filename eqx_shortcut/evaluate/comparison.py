"""Every metric of one set of images against another."""

import numpy as np

from .collected import Collected
from .features import Features
from .frechet import frechet_distance
from .inception_score import inception_score
from .kernel import kernel_distance, maximum_mean_discrepancy
from .neighbours import prdc
from .statistics import Statistics

SUBSET, SPLITS = 1000, 10


def compare(samples: Collected, real: Statistics, features: Features, *, neighbours: int = 10_000) -> dict[str, float]:
    """All distances by name that the collected moments, features and logits allow, the Frechet distance first.

    sFID needs features that keep their place, IS logits; KID (100 subsets of 1,000), precision, recall, density, coverage
    and MMD need the features of single real images, and the last five use the first `neighbours` of them (0: left out). Names
    end in the features used unless these are Inception's. Raises ValueError if the features differ in number.
    """
    tag = "" if features.name == "FID" else f"-{features.name.removeprefix('FD-').removesuffix(' Frechet distance')}"
    found = {features.name: frechet_distance(samples.moments, real.vectors)}
    if samples.spatial is not None and real.spatial is not None:
        found[f"sFID{tag}"] = frechet_distance(samples.spatial, real.spatial)
    if samples.logits is not None:
        score, spread = inception_score(samples.logits, splits=min(SPLITS, len(samples.logits)))
        found |= {f"IS{tag}": score, f"IS{tag} std": spread}
    if real.kept is None:
        return found
    size = min(SUBSET, len(samples.kept), len(real.kept))
    distance, spread = kernel_distance(samples.kept, real.kept, np.random.RandomState(2020), size=size)
    found |= {f"KID{tag}": distance, f"KID{tag} std": spread}
    if neighbours:
        sides = samples.kept[:neighbours], real.kept[:neighbours]
        found |= {f"{name}{tag}": value for name, value in prdc(*sides)._asdict().items()}
        found[f"MMD{tag}"] = maximum_mean_discrepancy(*sides)
    return found
