"""Networks that answer the data in place of a velocity (JiT, arXiv 2511.13720; pMF, arXiv 2601.22158)."""

from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from ..types import Cond, Number, Point
from .field import in_float32

Prediction = Literal["velocity", "data"]
"""What a network's last layer answers."""


def velocity_toward(data: Point, x: Point, t: Number, *, nearest: float = 0.05) -> Point:
    """`(data - x) / max(1 - t, nearest)`, the velocity from `x` at `t` that ends at the data, for `t <= 1 - nearest`.

    Nearer to the end of time errors of predicted data are not magnified any more.
    """
    return (data.astype(x.dtype) - x) / jnp.maximum(1 - t, nearest).astype(x.dtype)


class DataPrediction(eqx.Module):
    """A network whose velocity is `(network(x, t, d, condition) - x) / max(1 - t, 0.05)`: what it answers are data.

    At `d = 1 - t` the step ends at that answer. Wraps any network of one example; DiT and MLP have it as `predict="data"`.
    """

    network: Any

    @property
    def in_float32(self) -> "DataPrediction":
        """The network computing in float32 (see NetworkField.precise)."""
        return DataPrediction(in_float32(self.network))

    def __call__(self, x: Point, t: Number, d: Number, condition: Cond, *, key: PRNGKeyArray | None = None) -> Point:
        return velocity_toward(self.network(x, t, d, condition, key=key), x, t)


def check_prediction(objective: Any, predict: Prediction | Literal["noise"]) -> None:
    """Raises ValueError for another answer than noise of a network whose objective trains it to answer noise as it is."""
    if predict != "velocity" and objective.predicts_noise:
        raise ValueError(
            f"{type(objective).__name__} trains the network to answer noise, and --network.predict {predict} makes a velocity "
            "of its answer: use --network.predict velocity"
        )
