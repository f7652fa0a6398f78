"""A small network for points and other vectors: a residual multilayer perceptron told time, step size and label."""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .. import ranges
from ..ranges import Count, Natural, Positive, Several
from ..types import Number, Point
from .guided import Condition, GuidedLabel, ToldGuidance, check_observed, embed, label_embedding, observation
from .layers import Dense, sinusoids, zeros
from .prediction import Prediction, check_prediction, velocity_toward


@dataclasses.dataclass(frozen=True)
class MLPConfig:
    """Size and options of the multilayer perceptron."""

    hidden: Count = 128
    """Width of the layers (1 or more)."""
    depth: Count = 3
    """Residual layers (1 or more)."""
    embed_scale: Positive = 6.0
    """Radians by which the fastest sinusoid of t and d turns from 0 to 1; losses with tangents fail at 100 (more than 0)."""
    frequencies: Several = 16
    """Sinusoids of t, and as many of d, of rates from the fastest down to its 16th part; an even number (2 or more)."""
    guided: ToldGuidance = "none"
    """What the network sees of the guidance in its condition: nothing, the scale, or also the times at which it holds."""
    observed: Natural = 0
    """Numbers in an observation, such as a robot's, which is then the condition; 0: conditions are labels (0 or more)."""
    predict: Prediction = "velocity"
    """What the last layer predicts: velocity, or data (velocity `(data - x) / max(1 - t, 0.05)`)."""

    def __post_init__(self):
        ranges.check(self)
        if self.frequencies % 2:
            raise ValueError(f"frequencies={self.frequencies}: use an even number, half of them sines and half cosines")

    def build(self, shape: tuple[int, ...], classes: int, *, key: PRNGKeyArray) -> "MLP":
        """A network for examples of `shape` and `classes` labels (0: none), initialised from `key`."""
        return MLP(self, shape, classes, key=key)

    def check(self, objective: Any) -> None:
        """Raises ValueError for an objective that asks for an input or a head that the network has not."""
        check_observed(objective, self.observed, self.guided)
        check_prediction(objective, self.predict)
        if objective.second_head:
            raise ValueError(f"{type(objective).__name__} trains a second head, which the MLP does not have: leave it out")


class Layer(eqx.Module):
    """`h + W silu((1 + a) U h + b)` with `a, b` from the condition; without a norm, so that tangents are smooth."""

    modulation: Dense
    up: Dense
    down: Dense

    def __init__(self, size: int, *, key: PRNGKeyArray):
        k_modulation, k_up, k_down = jax.random.split(key, 3)
        self.modulation = Dense(size, (2, size), key=k_modulation)
        self.up = Dense(size, size, key=k_up)
        self.down = Dense(size, size, key=k_down)

    def __call__(self, h: Float[Array, " size"], c: Float[Array, " size"]) -> Float[Array, " size"]:
        scale, shift = self.modulation(c, h.dtype)
        return h + self.down(jax.nn.silu((1 + scale) * self.up(h, h.dtype) + shift), h.dtype)


class MLP(eqx.Module):
    """Residual layers modulated by sinusoids of `t` and of `d` (linear, so also at `d = 0`) and by the label.

    An observation in place of the label is an input beside `x`, too. The last layer of an untrained network answers 0.
    """

    inputs: Dense
    time: Dense
    step: Dense
    label: Float[Array, "labels size"] | GuidedLabel | Dense
    layers: tuple[Layer, ...]
    out: Dense
    config: MLPConfig = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)
    classes: int = eqx.field(static=True)

    def __init__(self, config: MLPConfig, shape: tuple[int, ...], classes: int, *, key: PRNGKeyArray):
        k_inputs, k_time, k_step, k_label, k_layers, k_out = jax.random.split(key, 6)
        size, numbers = config.hidden, math.prod(shape)
        self.inputs = Dense(numbers + config.observed, size, key=k_inputs)
        self.time = Dense(config.frequencies, size, key=k_time)
        self.step = Dense(config.frequencies, size, key=k_step)
        scale, observed = config.embed_scale, config.observed
        self.label = label_embedding(classes, size, config.guided, scale=scale, key=k_label, observed=observed)
        self.layers = tuple(Layer(size, key=k) for k in jax.random.split(k_layers, config.depth))
        self.out = Dense(size, numbers, key=k_out, init=zeros)
        self.config, self.shape, self.classes = config, shape, classes

    def __call__(self, x: Point, t: Number, d: Number, label: Condition, *, key: PRNGKeyArray | None = None) -> Point:
        c = self.time(self._waves(t), x.dtype) + self.step(self._waves(d), x.dtype)
        c = jax.nn.silu(sum((vector.astype(x.dtype) for vector in embed(self.label, label, x.dtype).values()), start=c))
        seen = [observation(label, x.dtype)] if self.config.observed else []
        h = self.inputs(jnp.concatenate([x.reshape(-1), *seen]), x.dtype)
        for layer in self.layers:
            h = layer(h, c)
        answer = self.out(jax.nn.silu(h), x.dtype).reshape(x.shape)
        return velocity_toward(answer, x, t) if self.config.predict == "data" else answer

    def held_at(self, d: float) -> "MLP":
        """The network that answers at every step size as this one does at `d`: the kernel on its step's sinusoids is 0."""
        kernel = self.step.kernel
        constant = self.step(self._waves(jnp.asarray(d, kernel.dtype)), kernel.dtype)
        return eqx.tree_at(lambda n: (n.step.kernel, n.step.bias), self, (jnp.zeros_like(kernel), constant))

    def _waves(self, value: Number) -> Float[Array, " frequencies"]:
        return sinusoids(self.config.embed_scale * value.astype(jnp.float32), self.config.frequencies, period=16)
