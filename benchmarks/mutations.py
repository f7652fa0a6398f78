"""Whether the tests see a change of the code: mutants of the mathematics, one at a time, each against the tests of its module.

    python benchmarks/mutations.py --known                                    # the listed changes that tests once did not see
    python benchmarks/mutations.py --sample 100 --seed 0 --out results.jsonl  # that many mutants, drawn from all
    python benchmarks/mutations.py --module guidance --module losses/_intervals   # all of these modules

Prints a line for each survivor and, at the end, the score, with and without those that are known to change nothing. With
`--out` each result is written as it comes, and a run that finds results there goes on after them; a module that has changed
since starts anew. A mutant is killed when a test fails, or takes longer than `--limit`. Each is a fork of one process that has
imported what tests import but for this package.
"""

import argparse
import ast
import contextlib
import copy
import hashlib
import importlib
import importlib.machinery
import json
import os
import pathlib
import random
import re
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import tqdm

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "eqx_shortcut"


def papers(*names: str) -> tuple[str, ...]:
    """These of the tests against the papers."""
    return tuple(f"losses/test_papers.py::test_{name}" for name in names)


def reference(*names: str) -> tuple[str, ...]:
    """These of the tests of the reference's losses against the papers."""
    return tuple(f"losses/test_papers_reference.py::test_{name}" for name in names)


def formulas(*names: str) -> tuple[str, ...]:
    """The gradients of these objectives beside their papers'."""
    return tuple(f"losses/test_papers_objectives.py::test_the_gradient_is_that_of_the_formula[{name}]" for name in names)


QUICK = tuple(
    f"{file}.py::test_{name}"
    for file, name in (
        ("test_objectives", "check_names_value_and_remedy"),
        ("test_objectives", "what_each_teaches_and_is_taught"),
        ("test_continuous_objectives", "check_names_value_and_remedy"),
        ("test_continuous_objectives", "they_are_continuous_and_have_what_they_train_beside_the_network"),
    )
)
"""Tests of objectives that compile nothing."""
FORMULAS = ("losses/test_papers_objectives.py",)
DISCRETE = ("test_objectives.py", "evaluate/test_by_time.py", *FORMULAS)
CONTINUOUS = ("test_continuous_objectives.py", *FORMULAS)
STOPPED = "no_gradient_passes_what_a_field_should_answer"
ON_PAIRS = ("losses/test_every_continuous_loss.py",)
EVERY = ("losses/test_every_loss.py",)
TEACHER = ("losses/test_teacher_laws.py", "losses/test_papers_teacher.py")
MOMENTS = ("losses/test_moment_matching_laws.py",)
TESTS = {
    "losses/_alpha_flow": (
        *papers("alpha_flow", "so_flow", "targets_are_clipped_in_units_of_the_data", "split_mean_flow"),
        "losses/test_alpha_flow_laws.py",
        *MOMENTS,
        *ON_PAIRS,
    ),
    "losses/_consistency": (
        *reference("consistency_distillation", "consistency_training"),
        *papers(
            "continuous_consistency", "continuous_consistency_with_its_tangent_as_it_is", "continuous_consistency_drops_labels"
        ),
        *EVERY,
        *ON_PAIRS,
        "losses/test_distillation_laws.py",
        "losses/test_continuous_consistency_laws.py",
        *papers(STOPPED),
    ),
    "losses/_flow_map": (
        *papers("lagrangian", "eulerian", "progressive_map", "split_mean_flow", "targets_are_clipped_in_units_of_the_data"),
        *TEACHER,
        *ON_PAIRS,
        "losses/test_flow_map_laws.py",
        *papers(STOPPED),
    ),
    "losses/_flow_matching": (
        *reference("flow_matching_and_diffusion", "live_reflow"),
        *EVERY,
        "losses/test_flow_matching.py",
        "losses/test_diffusion_laws.py",
        "losses/test_reflow_laws.py",
    ),
    "losses/_mean_flow": (
        *papers(
            "improved_mean_flow", "improved_mean_flow_is_told_its_scale", "mean_flow", "esc_learns_from_the_lines_of_its_batch"
        ),
        *TEACHER,
        *ON_PAIRS,
        "losses/test_mean_flow_laws.py",
        *papers(STOPPED),
    ),
    "losses/_intervals": (
        *papers("lagrangian", "mean_flow", "esc_learns_from_the_lines_of_its_batch", "alpha_flow"),
        *TEACHER,
        *ON_PAIRS,
        "losses/test_mean_flow_laws.py",
        *papers(STOPPED),
    ),
    "losses/_mid_training": ("losses/test_papers_teacher.py::test_mid_training", "losses/test_teacher_laws.py"),
    "losses/_regression": (
        *papers("lagrangian", "alpha_flow"),
        *reference("shortcut"),
        "losses/test_shortcut.py",
        *papers("magnitudes_of_velocities_are_those_of_the_targets"),
        *ON_PAIRS,
    ),
    "losses/_frechet": ("losses/test_frechet_laws.py", "test_set_objectives.py"),
    "losses/_reward": ("losses/test_reward_laws.py",),
    "losses/_sets": ("losses/test_sets_laws.py", "test_set_objectives.py"),
    "losses/_shortcut": (
        *reference("shortcut", "shortcut_biased_to_large_steps", "progressive_distillation"),
        "losses/test_shortcut.py",
        *EVERY,
        "losses/test_distillation_laws.py",
        "test_objectives.py::test_check_names_value_and_remedy",
        "test_objectives.py::test_shortcut_accepts_the_smallest_batch",
    ),
    "objectives/_alpha_flow": (*formulas("AlphaFlow", "AlphaFlow, at its end", "SoFlow"), *MOMENTS, *CONTINUOUS),
    "objectives/_base": (*QUICK, *DISCRETE, *CONTINUOUS),
    "objectives/_consistency": (
        *QUICK,
        *formulas("ConsistencyTraining", "ConsistencyDistillation", "ContinuousConsistency from a teacher", "MidTraining"),
        *DISCRETE,
        *CONTINUOUS,
    ),
    "objectives/_flow_map": (*formulas("Lagrangian", "Eulerian", "ProgressiveMap"), *CONTINUOUS),
    "objectives/_flow_matching": (*QUICK, *formulas("FlowMatching", "Diffusion", "LiveReflow"), *DISCRETE),
    "objectives/_mean_flow": (*QUICK, *formulas("MeanFlow", "ImprovedMeanFlow, two heads"), *CONTINUOUS),
    "objectives/_pairs": (*QUICK, *formulas("Lagrangian", "MeanFlow from a teacher"), *CONTINUOUS, "test_ranges.py"),
    "objectives/_reward": ("test_set_objectives.py",),
    "objectives/_sets": ("test_set_objectives.py",),
    "objectives/_shortcut": (
        *QUICK,
        *formulas("Shortcut", "ProgressiveDistillation", "ProgressiveDistillation, later"),
        *DISCRETE,
    ),
    "ema": ("test_ema.py",),
    "guidance": (
        "test_guidance.py",
        "losses/test_options.py",
        *papers("mean_flow", "improved_mean_flow_is_told_its_scale"),
        *reference("shortcut"),
        *TEACHER,
    ),
    "rows": ("test_rows.py", *reference("shortcut"), "test_guidance.py"),
    "samplers": ("test_samplers.py", "losses/test_diffusion_laws.py"),
    "steps": (
        "test_steps.py",
        "losses/test_papers_teacher.py::test_mid_training",
        *papers("alpha_flow"),
        *reference("shortcut"),
        "test_samplers.py",
    ),
    "tangents": (
        *papers("mean_flow", "tangents_are_taken_by_the_function_that_is_given", "eulerian"),
        "losses/test_mean_flow_laws.py::test_finite_differences_tend_to_the_tangent_at_second_order",
        "losses/test_every_continuous_loss.py",
        "test_tangent_training.py",
    ),
    "times": ("test_times.py", "test_continuous_objectives.py", *reference("shortcut", "consistency_training")),
    "weights": ("test_weights.py", *papers("lagrangian", "alpha_flow"), *MOMENTS),
}
"""The modules that are changed, and the tests of each, the keenest first."""

ELSEWHERE = {
    "models/prediction": ("losses/test_data_prediction.py",),
    "trained": ("losses/test_data_prediction.py", "test_trained.py"),
}
"""Modules that are no mathematics throughout, and are changed where they are listed below or asked for by `--module`."""


class Patch(NamedTuple):
    """A change by hand of the one place where `old` stands in a module."""

    module: str
    old: str
    new: str


KNOWN = {
    "samples flee the data": Patch("losses/_sets", "return to_data - to_others,", "return to_others - to_data,"),
    "a half of the samples flees itself": Patch(
        "losses/_sets", "jax.vmap(half)(both, both[::-1])", "jax.vmap(half)(both, both)"
    ),
    "distances that do not count alike": Patch(
        "losses/_frechet", "distances / jax.lax.stop_gradient(jnp.maximum(distances, 0) + eps)", "distances"
    ),
    "rewarded lines repel": Patch("losses/_reward", "r * part(1) + (1 - r) * part(-1)", "r * part(-1) + (1 - r) * part(1)"),
    "told guidance upside down": Patch("losses/_mean_flow", "1 - 1 / told.scale", "1 / told.scale"),
    "guided by the field, not by the head": Patch(
        "losses/_mean_flow", "velocity_target(field if velocity is None else velocity, draws", "velocity_target(field, draws"
    ),
    "the head without its adaptive weight": Patch(
        "losses/_mean_flow", "d=jnp.zeros_like(lines.d)), weigh, reduction)", "d=jnp.zeros_like(lines.d)), (), reduction)"
    ),
    "no loss of the head row by row": Patch(
        "losses/_mean_flow",
        "return loss + head,",
        "return loss + (0 if reduction is None else head),",
    ),
    "steps of alpha-Flow unguided": Patch(
        "losses/_alpha_flow",
        "velocity_target(target, steps, guidance, teacher=teacher)",
        "velocity_target(target, steps, teacher=teacher)",
    ),
    "velocities guided by the field, not by the target": Patch(
        "losses/_alpha_flow",
        "velocity_target(target, lines, guidance, teacher",
        "velocity_target(field, lines, guidance, teacher",
    ),
    "a learned weight in place of the adaptive one": Patch(
        "losses/_regression", "weight(loss, rows), weigh, error)", "weight(error, rows), weigh, error)"
    ),
    "continuous consistency drops no label": Patch(
        "losses/_consistency", "whole_way_draws(batch, key, at=at, guidance=guidance)", "whole_way_draws(batch, key, at=at)"
    ),
    "consistency distillation unguided": Patch(
        "objectives/_consistency", "self.guidance, networks.null)", "1.0, networks.null)"
    ),
    "no bias of shortcut's steps": Patch(
        "losses/_shortcut", "times.dyadic_levels(n, steps, bias=dt_bias)", "times.dyadic_levels(n, steps)"
    ),
    "the tangent of Eulerian always stopped": Patch(
        "losses/_flow_map",
        "eulerian_error(field, steps, velocity=teacher, **options)",
        "eulerian_error(field, steps, velocity=teacher, **options | {'stop_tangent': True})",
    ),
    "a gradient through Eulerian's own velocity": Patch(
        "losses/_flow_map",
        "own = jax.lax.stop_gradient(velocity_of(field if velocity is None else velocity, x, t, cond))",
        "own = velocity_of(field if velocity is None else velocity, x, t, cond)",
    ),
    "a teacher asked for its average": Patch(
        "losses/_intervals", "velocity_of(teacher, x, draws.t,", "teacher(x, draws.t, draws.d,"
    ),
    "the end of a step by the target and not by the teacher": Patch(
        "losses/_flow_map", "target if teacher is None else teacher, steps", "target, steps"
    ),
    "Eulerian along the own velocity beside a teacher": Patch(
        "losses/_flow_map", "steps, velocity=teacher, **options", "steps, **options"
    ),
    "MeanFlow without its teacher": Patch("losses/_mean_flow", "guidance, teacher=teacher), intervals", "guidance), intervals"),
    "the teacher's path by Euler": Patch("losses/_mid_training", "last=t == times[-1]", "last=True"),
    "Heun's step by Euler": Patch("steps", "jax.lax.cond(last, lambda: end, corrected)", "end"),
    "Heun's last step corrected": Patch("steps", "jax.lax.cond(last, lambda: end, corrected)", "corrected()"),
    "Heun's step asked at its size": Patch(
        "steps", "velocity_of(field, end, t + d, cond)", "predict(field, end, t + d, d, cond)"
    ),
    "a teacher guided at all times": Patch(
        "guidance", "return where_rows(_within(t, within), extrapolated, strong)", "return extrapolated"
    ),
    "a teacher told its guidance": Patch("guidance", "cond, here, within = cond.cond,", "cond, here, within = cond,"),
    "the weak network not asked": Patch(
        "objectives/_base", "if self.weak is None else NetworkField(self.weak)", "if self.weak is None else teacher"
    ),
    "scales that favour low ones": Patch("guidance", "ends if scales.uniform else jnp.log(ends)", "jnp.log(ends)"),
    "predicted data without a limit": Patch("models/prediction", "jnp.maximum(1 - t, nearest)", "(1 - t)"),
    "samples from unit noise": Patch("trained", "model.noise_scale * _normal(key, indices", "_normal(key, indices"),
}
"""What tests did not see once, and what a method is easily got wrong by."""


EQUIVALENT = {
    r"without strict: zip|(guidance _same|_sets _on_sets|_sets features_of_both): constant: True ": (
        "both have the same length by construction, which `strict` only states"
    ),
    r"guidance guided.some_rows: constant: 1 |rows interleaved: constant: 1 ": "NumPy takes any negative size for what is left",
    r"weights Adaptive.__call__: constant: 0 ": "one row has as many elements as another",
    r"_sets entropic_map: function: jnp.zeros_like": "a start that is the same everywhere cancels",
    r"_sets features_of_both: argument itself": "data depend on nothing that is trained",
    r"ema inner_product: comparison: a.t <= b.t": "of equal lengths the share is 1, to any power",
    r"ema combination: without rcond": "None is NumPy's default",
    r"_sets Frechet.memory: constant: 2 ": "features are of one size, however many rows there are",
    r"check_divides: comparison: k [<>] every": "what divides the batch is not what does not",
    r"_frechet frechet_distance: constant: 1 ": "stands where the outer `where` takes 0: any positive number serves",
    r"_base stopped: argument itself|argument itself: stopped\(": "losses stop what a target answers, too",
    r"_intervals Intervals.draw: constant: 1.0": "a probability of 1 drops every label, and so does a larger one",
    r"_mean_flow mean_flow_target: argument itself: jax.lax.stop_gradient": "the slope is stopped; a value has no direction",
    r"_sets entropic_map: without axis": "1 is the last of two axes",
    r"samplers _loop: and, or": "where one of the numbers is traced the loop is the same; JAX converts the other",
}
"""Changes that change nothing, by a regular expression of module and change, and why: no test can see these."""


class Mutant(NamedTuple):
    """A module with one change, its source, what the change is, and the line where it is."""

    module: str
    change: str
    source: str
    line: int = 0

    @property
    def name(self) -> str:
        """An identifier that holds as long as its module stays as it is."""
        return f"{self.module} {hashlib.sha256(self.source.encode()).hexdigest()[:12]}"

    def __str__(self) -> str:
        return f"{self.module}.py:{self.line} {self.change}"

    @property
    def equivalent(self) -> str | None:
        """Why it does what the code does, if that is known."""
        return next((why for form, why in EQUIVALENT.items() if re.search(form, f"{self.module} {self.change}")), None)


# Changes


def by_hand() -> list[Mutant]:
    """The known changes; raises ValueError if one does not fit its module any more."""
    return [Mutant(patch.module, what, patched(what, patch)) for what, patch in KNOWN.items()]


def patched(what: str, patch: Patch) -> str:
    """The source of the patch's module with it."""
    source = path_of(patch.module).read_text()
    if source.count(patch.old) != 1:
        raise ValueError(f"{what!r}: {patch.old!r} stands {source.count(patch.old)} times in {patch.module}.py: write it anew")
    return source.replace(patch.old, patch.new)


def path_of(module: str) -> pathlib.Path:
    return PACKAGE / f"{module}.py"


def mutants_of(module: str) -> list[Mutant]:
    """Every change of one expression or condition of a module.

    None of its docstrings, annotations, errors, and of the default values of its arguments and settings, which no law states.
    """
    source = path_of(module).read_text()
    tree = ast.parse(source)
    mutants = []
    for node, parent, field, index in places(tree):
        for what, other in changes(node):
            with replaced(parent, field, index, other):
                changed = ast.unparse(tree)
            change = f"{function_at(tree, node.lineno)}: {what}: {shown(node)}  ->  {shown(other)}"
            mutants.append(Mutant(module, change, changed, node.lineno))
    return mutants


def function_at(tree: ast.Module, line: int) -> str:
    """The names of the classes and functions around a line."""
    around = (ast.ClassDef, ast.FunctionDef)
    return ".".join(n.name for n in ast.walk(tree) if isinstance(n, around) and n.lineno <= line <= (n.end_lineno or 0))


def places(node: ast.AST) -> Iterator[tuple[Any, ast.AST, str, int | None]]:
    """Each node that may be changed, with where in its parent it stands."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "defaults", "kw_defaults"):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or is_left(child):
                continue
            yield child, node, field, index
            yield from places(child)


def is_left(node: ast.AST) -> bool:
    """Errors, imports, settings with their defaults, aliases of types, and strings that stand alone."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    alias = isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript | ast.BinOp) and is_type(node.value)
    return alias or isinstance(node, ast.Raise | ast.Import | ast.ImportFrom | ast.JoinedStr | ast.AnnAssign)


def is_type(node: ast.AST) -> bool:
    return any(
        isinstance(part, ast.Name) and part.id in ("Callable", "Array", "Int", "Literal", "PyTree", "float")
        for part in ast.walk(node)
    )


@contextlib.contextmanager
def replaced(parent: ast.AST, field: str, index: int | None, other: ast.AST) -> Iterator[None]:
    """With another node in its place."""
    holder: Any = getattr(parent, field)
    before = holder if index is None else holder[index]

    def put(node):
        if index is None:
            setattr(parent, field, node)
        else:
            holder[index] = node

    put(other)
    try:
        yield
    finally:
        put(before)


OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult,
}
OPERATORS |= {ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.Mod: ast.FloorDiv}
COMPARISONS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
COMPARISONS |= {ast.Is: ast.IsNot, ast.IsNot: ast.Is}
FUNCTIONS = {
    "minimum": "maximum",
    "maximum": "minimum",
    "sin": "cos",
    "cos": "sin",
    "ones_like": "zeros_like",
    "zeros_like": "ones_like",
}
FUNCTIONS |= {
    "floor": "ceil",
    "exp": "sin",
    "log": "sin",
    "sqrt": "square",
    "mean": "sum",
    "square": "abs",
    "any": "all",
    "all": "any",
}

ORDERED = ("where", "where_rows", "arctan2", "_interleave")
"""Functions of which the last two arguments change places; those of others seldom have the same type."""


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """The nodes that may stand in place of one, each with its description."""
    match node:
        case ast.BinOp():
            if type(node.op) in OPERATORS:
                yield "operator", ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
            yield "left alone", node.left
        case ast.Compare(ops=[operator]) if type(operator) in COMPARISONS:
            yield "comparison", ast.Compare(node.left, [COMPARISONS[type(operator)]()], node.comparators)
        case ast.BoolOp():
            yield "and, or", ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
        case ast.UnaryOp() if not isinstance(node.operand, ast.Constant):
            yield "sign", node.operand
        case ast.IfExp():
            yield "branches", ast.IfExp(node.test, node.orelse, node.body)
        case ast.If() if not all(isinstance(line, ast.Raise) for line in node.body):
            yield "condition", ast.If(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
        case ast.Constant(value=bool(value)):
            yield "constant", ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield "constant", ast.Constant(value + 1)
        case ast.Constant(value=float(value)):
            yield "constant", ast.Constant(1.5 * value + 0.1)
        case ast.Call():
            yield from changes_of_call(node)


def changes_of_call(node: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    """Another function, other arguments, or the argument itself."""
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in ("stop_gradient", "stopped", "clipped", "where_rows") and node.args:
        yield "argument itself", node.args[0]
    if name in FUNCTIONS and isinstance(node.func, ast.Attribute):
        yield "function", ast.Call(ast.Attribute(node.func.value, FUNCTIONS[name], ast.Load()), node.args, node.keywords)
    for i, keyword in enumerate(node.keywords):
        if keyword.arg is not None:
            yield f"without {keyword.arg}", ast.Call(node.func, node.args, node.keywords[:i] + node.keywords[i + 1 :])
    if name in ORDERED and len(node.args) > 1:
        yield "arguments", ast.Call(node.func, [*node.args[:-2], node.args[-1], node.args[-2]], node.keywords)


def shown(node: ast.AST) -> str:
    text = " ".join(ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).split())
    return text if len(text) <= 60 else text[:57] + "..."


# Runs


def killer(mutant: Mutant, limit: float) -> str | None:
    """The test of its module that fails in a fork of this process, "time" if that takes `limit` seconds, None if all pass."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.setsid()
        os._exit(tested(mutant, writing))
    os.close(writing)
    try:
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                first = os.read(reading, 4096).decode()
                return (first or "an import") if os.waitstatus_to_exitcode(status) else None
            time.sleep(0.05)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "time"
    finally:
        os.close(reading)


def tested(mutant: Mutant, told: int) -> int:
    """The exit status of the tests with the mutant in place of its module; the name of one that fails is written to `told`."""
    try:
        import pytest

        if mutant.source:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
                os.dup2(nowhere.fileno(), 2)
            substitute(path_of(mutant.module), mutant.source)
        files = [str(ROOT / "tests" / name) for name in tests_of(mutant.module)]
        # Pytest wants to import the plugins that are there already.
        options = "-x -q -p no:cacheprovider -p no:xdist -W ignore::pytest.PytestAssertRewriteWarning"
        return int(pytest.main([*options.split(), *files], plugins=[Teller(told)]))
    except BaseException:
        return 1


class Teller:
    """A plugin of pytest that writes the name of the test that fails."""

    def __init__(self, told: int):
        self._told = told

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            os.write(self._told, report.nodeid.encode())


def tests_of(module: str) -> tuple[str, ...]:
    return (TESTS | ELSEWHERE)[module]


def substitute(module: pathlib.Path, source: str) -> None:
    """Let the import of a module find another source than its file's, and no compiled one."""
    loader = importlib.machinery.SourceFileLoader
    read, state = loader.get_data, loader.path_stats

    def get_data(self, path):
        return source.encode() if pathlib.Path(path) == module else read(self, path)

    def path_stats(self, path):
        return {"mtime": 0, "size": 0} if pathlib.Path(path) == module else state(self, path)

    loader.get_data, loader.path_stats = get_data, path_stats
    sys.dont_write_bytecode = True


def imported() -> None:
    """Imports that take long and start no device, done before the forks."""
    names = "jax.numpy jax.experimental.multihost_utils equinox optax numpy scipy.stats pytest jaxtyping beartype.claw"
    for name in names.split():
        importlib.import_module(name)


def results(path: pathlib.Path | None) -> dict[str, dict[str, Any]]:
    """By the mutant's name, what an earlier run found."""
    lines = path.read_text().splitlines() if path is not None and path.exists() else []
    return {found["name"]: found for found in map(json.loads, lines)}


def run(mutants: list[Mutant], out: pathlib.Path | None, limit: float, *, again: bool = False) -> list[Mutant]:
    """The survivors; results are written to `out` as they come; with `again` its survivors that may be seen are tried anew."""
    known, survivors = results(out), []
    if again:
        known = {m.name: known[m.name] for m in mutants if m.name in known and (known[m.name]["killer"] or m.equivalent)}
    bar = tqdm.tqdm(mutants, unit="mutant")
    for mutant in bar:
        if mutant.name not in known:
            start = time.monotonic()
            outcome = {"name": mutant.name, "change": mutant.change, "killer": killer(mutant, limit)}
            known[mutant.name] = outcome | {"seconds": round(time.monotonic() - start, 1)}
            if out is not None:
                with out.open("a") as file:
                    file.write(json.dumps(known[mutant.name]) + "\n")
        if known[mutant.name]["killer"] is None:
            survivors.append(mutant)
            bar.write(fate(mutant))
        bar.set_postfix(survivors=len(survivors))
    return survivors


def fate(survivor: Mutant) -> str:
    """A line that names it, with the reason if it is equivalent."""
    why = survivor.equivalent
    return f"survives: {survivor}" if why is None else f"equivalent: {survivor}: {why}"


def check_tests(modules: list[str], limit: float) -> None:
    """Raise SystemExit unless the tests pass on the code as it is: they would kill every mutant."""
    files = tuple(dict.fromkeys(name for module in modules for name in tests_of(module)))
    ELSEWHERE["unchanged"] = files
    if failed := killer(Mutant("unchanged", "", ""), limit * len(files)):
        raise SystemExit(f"of the tests {' '.join(files)} {failed} fails on the code as it is, or they take --limit each")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--known", action="store_true", help="only the listed changes that tests once did not see")
    parser.add_argument("--module", action="append", choices=TESTS | ELSEWHERE, help="may be given several times; default: all")
    parser.add_argument("--sample", type=int, help="this many mutants, drawn from all of the modules")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, help="file of results, one JSON object a line")
    parser.add_argument("--again", action="store_true", help="try what survived in --out again, after tests were added")
    parser.add_argument("--limit", type=float, default=300, help="seconds after which a mutant counts as killed")
    parser.add_argument("--unchecked", action="store_true", help="do not run the tests on the code as it is first")
    arguments = parser.parse_args()
    modules = arguments.module or list(TESTS)
    mutants = by_hand() if arguments.known else [mutant for module in modules for mutant in mutants_of(module)]
    of = len(mutants)
    if arguments.sample is not None and arguments.sample < of:
        mutants = random.Random(arguments.seed).sample(mutants, arguments.sample)
    # Eager tests compile hundreds of small programs, which are the same in every fork.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "xla-all"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    imported()
    if not arguments.unchecked:
        check_tests(list(dict.fromkeys(mutant.module for mutant in mutants)), arguments.limit)
    survivors = run(mutants, arguments.out, arguments.limit, again=arguments.again)
    killed, seen = len(mutants) - len(survivors), len(mutants) - sum(mutant.equivalent is not None for mutant in survivors)
    print(f"{killed} of {len(mutants)} mutants killed ({killed / max(1, len(mutants)):.1%}), of {of} in all")
    print(f"{killed / max(1, seen):.1%} of those that change what the code does")
    print("\n".join(map(fate, survivors)))


if __name__ == "__main__":
    main()
