"""A number in settings of networks, objectives and optimizers is refused outside the range that its documentation states."""

import dataclasses
import importlib
import inspect
import json
import math
import pathlib
import re
import typing
from typing import Any

import pytest

from eqx_shortcut import cli, data, models, objectives, optimizer, ranges, robots, settings
from eqx_shortcut.commands import weights
from eqx_shortcut.experiment import config
from scripts import script


def concrete(module: Any, base: type) -> list[type]:
    """The dataclasses that a module offers below `base`."""
    found = [kind for _, kind in inspect.getmembers(module, inspect.isclass) if base in kind.__mro__]
    return [kind for kind in found if dataclasses.is_dataclass(kind) and not inspect.isabstract(kind)]


COMMANDS = [importlib.import_module(f"eqx_shortcut.commands.{name}") for name in cli.commands()]
KINDS = [
    config.Quality,
    config.Figures,
    config.Checkpointing,
    config.Averages,
    config.Health,
    config.Mesh,
    config.Processes,
    config.Config,
    data.ImageFolder,
    data.LatentImages,
    *(
        module.Config
        for module in COMMANDS
        if isinstance(module.Config, type) and module.__name__ != "eqx_shortcut.commands.plot"
    ),
    weights.Export,
    weights.Import,
    models.DiTConfig,
    models.MLPConfig,
    robots.PushT,
    robots.Reach,
    *(script(name).Config for name in ("classifier", "evaluations")),
    *concrete(objectives, objectives.Objective),
    *concrete(optimizer, optimizer.Optimizer),
]


REQUIRED: dict[str, Any] = {
    "data": data.Digits(),
    "source": data.ImageFolder(path=pathlib.Path("photos")),
    "network": models.DiTConfig(),
    "objective": objectives.Shortcut(),
    "optimizer": optimizer.AdamW(),
    "out": pathlib.Path("out.npz"),
    "runs": (pathlib.Path("run"),),
}
"""Fields without a default; others are paths."""


def built(kind: type, **given: Any) -> Any:
    """One with these fields, and all others by default."""
    fields = [field for field in dataclasses.fields(kind) if field.default is field.default_factory is dataclasses.MISSING]
    return kind(**{field.name: REQUIRED.get(field.name, pathlib.Path("place")) for field in fields} | given)


def numeric(kind: type) -> list[str]:
    """Fields whose type has a number in it, with a range or without. (Weights have names too, and a rule of their own.)"""
    hints = typing.get_type_hints(kind)
    found = [field.name for field in dataclasses.fields(kind) if {int, float} & parts(hints[field.name])]
    return [name for name in found if name != "weights"]


def parts(hint: Any) -> set[Any]:
    """A type and those of which it is made."""
    return {hint}.union(*map(parts, typing.get_args(hint)))


CASES = [(kind, name) for kind in KINDS for name in numeric(kind)]


def refused(kind: type, name: str, value: Any) -> str:
    default = getattr(built(kind), name)
    count = 2 if name == "guidance_interval" else max(1, len(default)) if isinstance(default, tuple) else None
    with pytest.raises(ValueError, match=rf"^{name}=") as caught:
        built(kind, **{name: value if count is None else (value,) * count})
    return str(caught.value)


def test_there_are_numbers_to_look_at():
    assert len(KINDS) >= 40 and len(CASES) >= 240


@pytest.mark.parametrize(("kind", "name"), CASES, ids=lambda case: getattr(case, "__name__", case))
def test_a_number_is_refused_where_it_means_nothing(kind, name):
    """By reflection: a new field without a range fails here."""
    allowed = {field: found for field, found, _ in ranges.ranges(kind)}.get(name)
    assert allowed is not None, f"{kind.__name__}.{name} has no range: annotate it with one of eqx_shortcut.ranges"
    values = [math.nan, math.inf, -math.inf, allowed.low - 1, allowed.high + 1, allowed.above, allowed.below]
    if float not in parts(typing.get_type_hints(kind)[name]):  # of numbers that are not whole the type checker says so
        values = [value for value in values if math.isfinite(value)]
    for value in values:
        sentence = refused(kind, name, value)
        assert str(value) in sentence and f"use {allowed}" in sentence and "\n" not in sentence


@pytest.mark.parametrize(("kind", "name"), CASES, ids=lambda case: getattr(case, "__name__", case))
def test_the_documentation_of_a_field_states_its_range(kind, name):
    """The string below a field, its own or that of the nearest base, which `--help` shows, ends in it."""
    allowed = {field: found for field, found, _ in ranges.ranges(kind)}[name]
    owners = [base for base in kind.__mro__ if name in inspect.get_annotations(base)]
    below = re.compile(rf'^    {name}: .*\n    """((?:.|\n)*?)"""', flags=re.MULTILINE)
    text = next(found[1] for owner in owners if (found := below.search(inspect.getsource(owner))))
    assert allowed == ranges.Range() or " ".join(text.split()).endswith(f"({allowed}).")


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_in_range_and_recorded_as_before(kind):
    assert settings.parse(json.loads(json.dumps(settings.dump(built(kind))))) == built(kind)


@pytest.mark.parametrize(
    ("kind", "given", "sentence"),
    [
        (objectives.Shortcut, {"label_dropout": 1.5}, "label_dropout=1.5: use 0 to 1"),
        (config.Quality, {"guidance": math.nan}, "guidance=nan: use a finite number"),
        (config.Health, {"spike": 1.0}, "spike=1.0: use more than 1, or None"),
        (config.Figures, {"steps": (4, 0)}, "steps=(4, 0): use 1 or more"),
        (objectives.Shortcut, {"clip": -1}, "clip=-1: use more than 0, or None"),
        (objectives.Shortcut, {"guidance": math.nan}, "guidance=nan: use 0 or more"),
        (objectives.MeanFlow, {"interval": (0.5, 2.0)}, "interval=(0.5, 2.0): use 0 to 1"),
        (
            objectives.MeanFlow,
            {"interval": (0.5, 0.2)},
            "interval=(0.5, 0.2) ends before it starts: name the earlier time first",
        ),
        (objectives.MeanFlow, {"time_mean": math.inf}, "time_mean=inf: use a finite number"),
        (objectives.MeanFlow, {"bootstrap_every": 1}, "bootstrap_every=1: use 2 or more"),
        (objectives.ESC, {"posterior_every": 0}, "posterior_every=0: use 1 or more, or None"),
        (objectives.ImprovedMeanFlow, {"max_scale": 1.0}, "max_scale=1.0: use more than 1, or None"),
        (objectives.Lagrangian, {"to_data": 1.5}, "to_data=1.5: use 0 to 1"),
        (objectives.Lagrangian, {"mix": 1.0}, "mix=1.0: use 0 to below 1"),
        (objectives.SoFlow, {"last": 0.0}, "last=0.0: use more than 0, at most 1"),
        (objectives.ProgressiveMap, {"share": 1.0}, "share=1.0: use more than 0, below 1, or None"),
        (optimizer.AdamW, {"lr": -1e-3}, "lr=-0.001: use 0 or more"),
        (optimizer.AdamW, {"beta1": 1.5}, "beta1=1.5: use 0 to below 1"),
        (optimizer.Muon, {"warmup": -1}, "warmup=-1: use 0 or more"),
        (models.DiTConfig, {"mlp_ratio": 0}, "mlp_ratio=0: use more than 0"),
        (models.DiTConfig, {"mlp_ratio": 1e-4}, "mlp_ratio=0.0001 of hidden=768 leaves the MLP no width: use 0.00260417"),
        (models.DiTConfig, {"dropout": 2.0}, "dropout=2.0: use 0 to below 1"),
    ],
)
def test_the_sentence_names_value_rule_and_remedy(kind, given, sentence):
    with pytest.raises(ValueError) as caught:
        kind(**given)
    assert str(caught.value) == sentence


def test_an_interval_may_be_one_time():
    assert objectives.MeanFlow(interval=(0.5, 0.5)).interval == (0.5, 0.5)


@pytest.mark.parametrize("command", ["sample", "evaluate", "interpolate", "trajectory", "export"])
@pytest.mark.parametrize(
    ("flag", "values", "sentence"),
    [
        ("--guidance", ["nan"], "error: --guidance nan: use a finite number"),
        ("--guidance", ["-inf"], "error: --guidance -inf: use a finite number"),
        ("--guidance-interval", ["0", "1.5"], "error: --guidance-interval 0.0 1.5: use 0 to 1, or None"),
    ],
)
def test_commands_on_a_run_refuse_guidance_that_means_nothing(tmp_path, capsys, command, flag, values, sentence):
    from eqx_shortcut import cli

    with pytest.raises(SystemExit) as stop:
        cli.main([command, str(tmp_path), flag, *values])
    assert stop.value.code == 2 and capsys.readouterr().err == f"{sentence}\n"


def test_what_is_no_number_is_in_no_range():
    assert all(value not in ranges.Range() for value in (None, "2", (1.0,), math.nan, math.inf))
    assert 10**400 in ranges.Range() and 0 not in ranges.Range(above=0) and 1 not in ranges.Range(below=1)


def test_the_command_line_takes_and_shows_fields_with_ranges(capsys):
    from eqx_shortcut import cli

    given = cli.parse(objectives.MeanFlow, None, args=["--label-dropout", "0.5", "--interval", "0", "0.5", "--end-mean", "1"])
    assert given == objectives.MeanFlow(label_dropout=0.5, interval=(0.0, 0.5), end_mean=1.0)
    with pytest.raises(SystemExit):
        cli.parse(objectives.MeanFlow, None, args=["--help"])
    assert "(0 to below 1)" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit):
        cli.parse(objectives.MeanFlow, None, args=["--label-dropout", "1.5"])
    assert capsys.readouterr().err == "error: --label-dropout 1.5: use 0 to 1\n"
