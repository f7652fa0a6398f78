"""Every loss once more, each from its paper: in that paper's time, sign and network, for rows that are given.

Nothing of the package stands here. `field(x, t, d, cond)` is a network in the package's convention, time from noise to data;
what a paper calls its network is made of it in one line. Each function returns one error a row, the mean square over the row's
elements where papers have the sum, and stops gradients where its paper does.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

N, SIZE, NULL = 12, 3, 3
"""Rows, their elements, and the label that stands for none."""

hold = jax.lax.stop_gradient


class Told(NamedTuple):
    """A label, and the guidance that the network is told beside it."""

    cond: Any
    scale: Any
    start: Any
    stop: Any


class Recorded:
    """A field, and what it was asked."""

    def __init__(self, field):
        self.asked: list[tuple[Any, ...]] = []
        self._field = field

    def __call__(self, x, t, d, cond):
        self.asked.append((x, t, d, cond))
        return self._field(x, t, d, cond)

    def first(self, n: int) -> tuple[Any, ...]:
        """The first question about `n` rows."""
        return next(asked for asked in self.asked if len(asked[0]) == n)


class Rows(NamedTuple):
    """Noise, data, times, step sizes and labels of a batch, of which some are dropped; steps in each `every`-th row."""

    noise: Any
    data: Any
    t: Any
    d: Any
    cond: Any

    @property
    def point(self):
        return over(1 - self.t) * self.noise + over(self.t) * self.data

    @property
    def line(self):
        return self.data - self.noise


def parameters(seed: int) -> dict[str, jax.Array]:
    """Of the field below; call it where float64 is on."""
    rng = np.random.default_rng(seed)
    shapes = {
        "into": (SIZE, 4),
        "out": (4, SIZE),
        "time": (4,),
        "step": (4,),
        "labels": (NULL + 1, 4),
        "gain": (3,),
        "told": (3,),
    }
    return {name: jnp.asarray(rng.standard_normal(shape)) for name, shape in shapes.items()}


def field_of(p):
    """A smooth field that depends on all it is given, and mixes the elements of a row."""

    def field(x, t, d, cond):
        told = jnp.zeros_like(t)
        if not isinstance(cond, jax.Array):
            told = jnp.sin(cond.scale) * p["told"][0] + cond.start * p["told"][1] + jnp.square(cond.stop) * p["told"][2]
            cond = cond.cond
        inside = x @ p["into"] + over(t) * p["time"][None] + over(d) * p["step"][None] + p["labels"][cond]
        bent = over(p["gain"][0] * jnp.sin(3 * t) + p["gain"][1] * jnp.square(d) + p["gain"][2] * t * d + told)
        return jnp.tanh(inside) @ p["out"] + bent * x / 2

    return field


def weight(t, d):
    """A weight of rows that differs for all of them."""
    return 1 + t + 10 * d


def log_variance(p):
    """A learned weight, its parameters those of the field so that the gradient by them is compared, too."""
    return lambda t, d: p["time"][0] * jnp.cos(t) + p["step"][0] * d


def given(every: int, *, steps_to_data: bool = False) -> Rows:
    """Rows at arbitrary times, with labels of which one is dropped among rows of either kind."""
    rng = np.random.default_rng(7)
    noise, data = rng.standard_normal((2, N, SIZE))
    t = rng.uniform(0.05, 0.9, N)
    d = 1 - t if steps_to_data else (1 - t) * rng.uniform(0.2, 1.0, N) * (np.arange(N) % every == 0)
    cond = np.arange(N) % NULL
    cond[[every, every + 1]] = NULL
    return Rows(*map(jnp.asarray, (noise, data, t, d, cond)))


def over(scalars):
    """One a row, to be multiplied with rows."""
    return scalars[:, None]


def way(start, end):
    """From one time to another, or 1 where there is none: such rows have a formula of their own."""
    return over(jnp.where(start == end, 1, end - start))


def mean_square(error):
    return jnp.mean(jnp.square(error), axis=1)


def square_sum(error):
    return jnp.sum(jnp.square(error), axis=1)


def none_of(cond):
    """The same rows without a label."""
    nothing = jnp.full_like(cond.cond if isinstance(cond, Told) else cond, NULL)
    return cond._replace(cond=nothing) if isinstance(cond, Told) else nothing


def is_none(cond):
    return (cond.cond if isinstance(cond, Told) else cond) == NULL


def weighed(error, t, d, *, power=0.0, eps=0.0, unit=1.0, learned=None, weight=None):
    """`s / sg(s + eps)^power` of the summed square `s`, in units of `unit`; `exp(-w) L + w` of that; times `weight`.

    Papers sum over the elements; in the mean over them the first is smaller by `SIZE^(1 - power)`.
    """
    s = SIZE * error / unit**2
    loss = unit * s / hold(s + eps) ** power / SIZE ** (1 - power)
    loss = loss if learned is None else jnp.exp(-learned(t, d)) * loss + learned(t, d)
    return loss if weight is None else weight(t, d) * loss


def same(loss: Callable, formula: Callable, p, *, rtol: float = 1e-9):
    """`loss(p, reduction=...)` has the rows that `formula(p)` has, their mean, and its gradient by every parameter."""

    def mean(p):
        rows = formula(p)
        return jnp.mean(rows), rows

    (expected, rows), gradient = jax.value_and_grad(mean, has_aux=True)(p)
    values, each = loss(p, reduction=None)
    np.testing.assert_allclose(values, rows, rtol=rtol)
    (value, metrics), found = jax.value_and_grad(loss, has_aux=True)(p)
    np.testing.assert_allclose([value, metrics["loss"], each["loss"]], expected, rtol=rtol)
    for name, leaf in found.items():
        np.testing.assert_allclose(leaf, gradient[name], rtol=1e2 * rtol, atol=1e-12, err_msg=name)


def in_steps(rows, every: int, error, flow):
    """`error` in each `every`-th row, `flow` in the others."""
    return jnp.where(jnp.arange(N) % every == 0, error, flow)


# Guidance


def extrapolated(field, scale):
    """Ho and Salimans: `u_none + scale (u_label - u_none)`."""

    def guided(x, t, d, cond):
        nothing = field(x, t, d, none_of(cond))
        return nothing + scale * (field(x, t, d, cond) - nothing)

    return guided


def taught(network, rows, guidance) -> Any:
    """MeanFlow's velocity, of `network`'s own at `d = 0`: `w v + k u_label + (1 - w - k) u_none` in an interval of time.

    Or that of a teacher, if `guidance` is one.
    """
    if guidance is None:
        return rows.line
    if callable(guidance):
        return hold(guidance(rows.point, rows.t, 0 * rows.t, rows.cond))
    w, k, (start, stop) = guidance
    w, k = (jnp.broadcast_to(jnp.asarray(a), rows.t.shape) for a in (w, k))
    asked = rows.point, rows.t, 0 * rows.t
    own, nothing = network(*asked, rows.cond), network(*asked, none_of(rows.cond))
    mixed = over(w) * rows.line + over(k) * own + over(1 - w - k) * nothing
    applies = (rows.t >= start) & (rows.t <= stop) & ~is_none(rows.cond)
    return hold(jnp.where(over(applies), mixed, rows.line))


def autoguided(strong, weak):
    """Karras et al. (2024): `weak + scale (strong - weak)` between the times that each row is told beside its label."""

    def guided(x, t, d, told):
        worse, better = weak(x, t, d, told.cond), strong(x, t, d, told.cond)
        scale = jnp.where((told.start <= t) & (t <= told.stop), told.scale, 1)
        return over(1 - scale) * worse + over(scale) * better

    return guided


# MeanFlow's family: `t` is the level of noise, `r < t` that of the end, velocities run from the data to the noise


def backwards(field):
    """The papers' `u(z, r, t)` of the package's field."""
    return lambda z, r, t, cond: -field(z, 1 - t, t - r, cond)


def total(u, z, r, t, cond, v):
    """Value of `u` and its derivative along `(v, 0, 1)`."""
    return jax.jvp(lambda z, r, t: u(z, r, t, cond), (z, r, t), (v, 0 * r, 1 + 0 * t))


def levels(rows):
    """The papers' `t` and `r`."""
    return 1 - rows.t, 1 - rows.t - rows.d


def mean_flow(field, rows, guidance=None):
    """Algorithm 1 of Geng et al. (2025)."""
    u, (t, r), v = backwards(field), levels(rows), -taught(field, rows, guidance)
    answer, slope = total(u, rows.point, r, t, rows.cond, v)
    return mean_square(answer - hold(v - over(t - r) * slope))


def improved_mean_flow(field, rows, guidance=None, head=None):
    """`V = u + (t - r) sg(du/dt)`, the tangent along the own velocity, on `v` (Geng et al. 2025b); and the head's error."""
    u, (t, r), own = backwards(field), levels(rows), head or field
    v = -taught(own, rows, guidance)
    velocity = backwards(own)(rows.point, t, t, rows.cond)
    answer, slope = total(u, rows.point, r, t, rows.cond, hold(velocity))
    return mean_square(answer + over(t - r) * hold(slope) - v), mean_square(velocity - v)


def flow(field, rows, guidance=None, guide=None):
    """The velocity at `d = 0`, guided by the network `guide`."""
    return mean_square(field(rows.point, rows.t, 0 * rows.t, rows.cond) - taught(guide or field, rows, guidance))


def alpha_flow(field, target, rows, alpha, guidance=None):
    """`s = a r + (1 - a) t`, `z_s = z - (t - s) v`, and `a v + (1 - a) u(z_s, r, s)` (Zhang et al. 2025)."""
    (t, r), v = levels(rows), -taught(target, rows, guidance)
    if alpha == 0:
        _, slope = total(backwards(target), rows.point, r, t, rows.cond, v)
        sought = v - over(t - r) * slope
    else:
        s = alpha * r + (1 - alpha) * t
        later = backwards(target)(rows.point - over(t - s) * v, r, s, rows.cond)
        sought = alpha * v + (1 - alpha) * later
    return mean_square(backwards(field)(rows.point, r, t, rows.cond) - hold(sought))


def so_flow(field, target, rows, alpha, guidance=None):
    """The same solution from `t` and from `l = t + a (r - t)`, over the way: `|f(z_t, t, r) - f(z_l, l, r)|^2 / (t - r)^2`."""
    (t, r), v = levels(rows), -taught(target, rows, guidance)

    def solution(network, z, t):
        return z - over(t - r) * backwards(network)(z, r, t, rows.cond)

    between = t + alpha * (r - t)
    later = solution(target, rows.point + over(between - t) * v, between)
    return mean_square((solution(field, rows.point, t) - hold(later)) / way(r, t))


def so_weighed(error, rows, *, power, eps, unit=1.0):
    """`m / sg(m + eps)^power` of the mean square `m`, in units of `unit`; rows of a step count half (the authors' code)."""
    m = error / unit**2
    return jnp.where(rows.d > 0, 0.5, 1.0) * unit * m / hold(m + eps) ** power


# Flow maps (Boffi et al. 2025): `X(s, t, x) = x + (t - s) v(s, t, x)`, time from noise to data


def flow_map(field, cond):
    return lambda s, t, x: x + over(t - s) * field(x, s, t - s, cond)


def lagrangian(field, target, rows):
    """`|d/dt X(s, t, x) - v(t, t, X(s, t, x))|^2`, the gradient through the derivative."""
    start, end = rows.t, rows.t + rows.d
    map_of = flow_map(field, rows.cond)
    there, speed = jax.jvp(lambda t: map_of(start, t, rows.point), (end,), (1 + 0 * end,))
    return mean_square(speed - hold(target(there, end, 0 * end, rows.cond)))


def eulerian(field, rows, *, through, teacher=None):
    """`|d/ds X(s, t, x) + v(s, s, x) . dX/dx|^2` with `v(s, s, x)` held, or the teacher's velocity in its place.

    The gradient passes `through` "all" of it, "time": `d/ds X` alone, or "value": `v(s, t, x)` alone.
    """
    start, end = rows.t, rows.t + rows.d
    own = hold((teacher or field)(rows.point, start, 0 * start, rows.cond))
    moving = flow_map(field, rows.cond)
    _, in_time = jax.jvp(lambda s: moving(s, end, rows.point), (start,), (1 + 0 * start,))
    _, in_space = jax.jvp(lambda x: moving(start, end, x), (rows.point,), (own,))
    if through == "value":
        answer = field(rows.point, start, rows.d, rows.cond)
        return mean_square(answer - hold(answer + in_time + in_space))
    return mean_square(in_time + (in_space if through == "all" else hold(in_space)))


def progressive_map(field, target, rows, share):
    """`|X(s, t, x) - X(w, t, X(s, w, x))|^2 / (t - s)^2` with `w` a `share` of the way."""
    start, end = rows.t, rows.t + rows.d
    middle = start + share * (end - start)
    by = flow_map(target, rows.cond)
    there = by(middle, end, by(start, middle, rows.point))
    answer = flow_map(field, rows.cond)(start, end, rows.point)
    return mean_square((answer - hold(there)) / way(start, end))


def mid_training(field, teacher, noise, cond, rollout):
    """`|X(t, 1, x) - x_1|^2 / (1 - t)^2` at every point of a path of the teacher (Heun's) to `x_1`, a path after another."""
    x, points, h = noise, [], 1 / rollout
    for i in range(rollout):
        points.append(x)
        t = jnp.full(len(x), i / rollout)
        first = teacher(x, t, 0 * t, cond)
        there = x + h * first
        x = there if i + 1 == rollout else x + h * (first + teacher(there, t + h, 0 * t, cond)) / 2
    errors = []
    for i, point in enumerate(points):
        t = jnp.full(len(x), i / rollout)
        there = flow_map(field, cond)(t, 1 + 0 * t, point)
        errors.append(mean_square((there - hold(x)) / over(1 - t)))
    return jnp.stack(errors, axis=1).reshape(-1)


# MeanFlowNFT (2026): what is learnt are the velocities that two networks imply, by the data that they lead to


def rewarded(field, old, rows, share, *, beta, balance=True):
    """`5/beta (r |x+ - x|^2/w+ + (1 - r) |x- - x|^2/w-)` with `x+- = z_t - t V+-`, `V+- = V_old +- beta (V - V_old)`.

    `V = u + (t - r) sg(du/dt)` along the velocity at no step; `w+-` is the mean distance `|x+- - x|`, held.
    """
    t, r = levels(rows)

    def implied(network):
        u = backwards(network)
        answer, slope = total(u, rows.point, r, t, rows.cond, hold(u(rows.point, t, t, rows.cond)))
        return answer + over(t - r) * hold(slope)

    def missed(sign):
        kept = hold(implied(old))
        data = rows.point - over(t) * (kept + sign * beta * (implied(field) - kept))
        off = data - rows.data
        return mean_square(off) / (hold(jnp.mean(jnp.abs(off), axis=1)) if balance else 1)

    return 5 / beta * (share * missed(1) + (1 - share) * missed(-1))


# sCM (Lu and Song 2025): `x = cos(s) x_0 + sin(s) z` with `z ~ N(0, sd^2)`, `f = cos(s) x - sin(s) sd F(x / sd, s)`


def consistency_network(field, cond, sd):
    """`F(x / sd, s)` of the field whose way to the data is the consistency function `f`."""

    def network(scaled, s):
        x = sd * scaled
        share = jnp.cos(s) + sd * jnp.sin(s)
        t = jnp.cos(s) / share
        data = x / over(share) + over(1 - t) * field(x / over(share), t, 1 - t, cond)
        return (over(jnp.cos(s)) * x - data) / over(jnp.sin(s) * sd)

    return network


def trigonometric_speed(velocity, rows, sd):
    """`dx/ds` of the trigonometric path for a velocity of the linear one: the chain rule in `k x` with `t = cos(s) / k`."""
    s = jnp.arctan2(1 - rows.t, rows.t * sd)
    share, bend = jax.jvp(lambda s: jnp.cos(s) + sd * jnp.sin(s), (s,), (1 + 0 * s,))
    _, pace = jax.jvp(lambda s: jnp.cos(s) / (jnp.cos(s) + sd * jnp.sin(s)), (s,), (1 + 0 * s,))
    return over(bend) * rows.point + over(share * pace) * velocity


def continuous_consistency(field, rows, *, sd, warmup, normalise, teacher=None):
    """Algorithm 1: `g = -cos^2 (sd F - dx/ds) - r cos sin (x + sd dF/ds)`, `g / (rms + c)`, and `|F - sg(F + g)|^2`."""
    s = jnp.arctan2(1 - rows.t, rows.t * sd)
    z = sd * rows.noise
    x = over(jnp.cos(s)) * rows.data + over(jnp.sin(s)) * z
    speed = over(jnp.cos(s)) * z - over(jnp.sin(s)) * rows.data
    if teacher is not None:
        speed = hold(trigonometric_speed(teacher(rows.point, rows.t, 0 * rows.t, rows.cond), rows, sd))
    network = consistency_network(field, rows.cond, sd)
    answer, slope = jax.jvp(network, (x / sd, s), (speed / sd, 1 + 0 * s))
    cos, sin = over(jnp.cos(s)), over(jnp.sin(s))
    g = hold(-(cos**2) * (sd * answer - speed) - warmup * cos * sin * (x + sd * slope))
    raw = jnp.mean(jnp.square(g))
    if normalise is not None:
        g = g / (over(jnp.sqrt(mean_square(g))) + normalise)
    return mean_square(answer - hold(answer + g)), raw


# The reference's six (Frans et al. 2024): a floor of noise is left at the data


def floored(rows, floor):
    """The point and the velocity of the line, with that share of noise at its end."""
    keep = 1 - floor
    return over(1 - keep * rows.t) * rows.noise + over(rows.t) * rows.data, rows.data - keep * rows.noise


def limited(x, clip):
    return x if clip is None else jnp.minimum(jnp.maximum(x, -clip), clip)


def flow_matching(field, rows, floor):
    x, v = floored(rows, floor)
    return mean_square(field(x, rows.t, rows.d, rows.cond) - v)


def two_halves(target, x, rows, clip):
    """Where two half steps lead, over the way."""
    half = rows.d / 2
    first = target(x, rows.t, half, rows.cond)
    middle = limited(x + over(half) * first, clip)
    return (first + target(middle, rows.t + half, half, rows.cond)) / 2


def shortcut(field, target, rows, *, floor, clip, scale=1.0, guided=None):
    """Two half steps for one, of which those rows are guided."""
    x, _ = floored(rows, floor)
    plain, free = (two_halves(u, x, rows, clip) for u in (target, extrapolated(target, scale)))
    sought = plain if guided is None else jnp.where(over(guided), free, plain)
    return mean_square(field(x, rows.t, rows.d, rows.cond) - hold(limited(sought, clip)))


def progressive(field, teacher, rows, *, floor, clip, scale=1.0):
    """Two half steps of a teacher for one."""
    x, _ = floored(rows, floor)
    sought = two_halves(extrapolated(teacher, scale), x, rows, clip)
    return mean_square(field(x, rows.t, rows.d, rows.cond) - hold(sought))


def consistency(field, target, rows, *, gap, floor, teacher=None, clip=None, scale=1.0):
    """`|f(x_t, t) - f(x_t', t')|^2 / (1 - t)^2` with `f = x + (1 - t) u(x, t, 1 - t)` and `t' = t + gap`.

    The later point is on the line, or a step of the teacher. At `t' = 1` the way to the data is nothing.
    """
    x, _ = floored(rows, floor)
    later, _ = floored(rows._replace(t=rows.t + gap), floor)
    if teacher is not None:
        velocity = extrapolated(teacher, scale)(x, rows.t, gap + 0 * rows.t, rows.cond)
        later = limited(x + gap * velocity, clip)
    left = 1 - rows.t - gap
    # Multiplied by nothing in the last cell, whatever is asked there.
    data = later + over(left) * target(later, rows.t + gap, left, rows.cond)
    seen = x + over(1 - rows.t) * field(x, rows.t, 1 - rows.t, rows.cond)
    return mean_square((seen - hold(data)) / over(1 - rows.t))


def live_reflow(field, target, rows, *, floor, steps, rollout, scale=1.0):
    """Flow matching between the noise and where `rollout` Euler steps of the network lead, told `d = 1`."""
    guide, x = extrapolated(target, scale), rows.noise
    for i in range(rollout):
        x = x + guide(x, jnp.full(len(x), i / rollout), jnp.full(len(x), 1 / steps), rows.cond) / rollout
    lines = rows._replace(data=hold(x))
    return mean_square(field(floored(lines, floor)[0], rows.t, rows.d, rows.cond) - (lines.data - lines.noise))


def diffusion(field, rows):
    """`|eps(sqrt(A) x + sqrt(1 - A) noise) - noise|^2` with `log A` the integral of a linear schedule from 0.1 to 20."""
    left = 1 - rows.t
    kept = jnp.exp(-(0.1 * left + (20 - 0.1) * left**2 / 2))
    x = over(jnp.sqrt(kept)) * rows.data + over(jnp.sqrt(1 - kept)) * rows.noise
    return mean_square(field(x, rows.t, rows.d, rows.cond) - rows.noise)


# ESC (2025): the velocity in the mean over all lines of the batch through a point


def posterior(rows, which):
    """The rows `which` with noise and data at their means given the point, over data of the same label, by densities."""
    noise, data = list(rows.noise), list(rows.data)
    for i in np.flatnonzero(np.asarray(which)):
        t, point = rows.t[i], rows.point[i]
        needed = (point[None] - t * rows.data) / (1 - t)
        density = jnp.where(rows.cond == rows.cond[i], jnp.exp(-square_sum(needed) / 2), 0)
        share = over(density / jnp.sum(density))
        noise[i], data[i] = jnp.sum(share * needed, axis=0), jnp.sum(share * rows.data, axis=0)
    return rows._replace(noise=jnp.stack(noise), data=jnp.stack(data))
