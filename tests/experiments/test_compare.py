"""compare.py: every method's command is one its experiment accepts, budgets are equal, and a table comes out."""

import dataclasses
import itertools
import json
import os
import pathlib

import pytest

from commands import in_process, snapshot
from eqx_shortcut import settings
from eqx_shortcut.evaluate import results
from eqx_shortcut.experiment.config import UNRECORDED
from eqx_shortcut.objectives import named, unsteady
from scripts import script

compare = script("compare")
Cell, Config, finished, lengths, worked = compare.Cell, compare.Config, compare.finished, compare.lengths, compare.worked
commands, read_costs, check_table = compare.commands, compare.read_costs, compare.check_table
record_of, report = compare.record_of, compare.report
methods = script("methods")
SETTINGS, TEACHER, parsed, settings_of = methods.SETTINGS, methods.TEACHER, methods.parsed, methods.settings_of

ALL = [(data, name) for data, setting in SETTINGS.items() for name in setting.methods]


@pytest.mark.parametrize(("data", "name"), ALL)
def test_every_method_is_what_its_name_says_and_can_be_trained(data: str, name: str) -> None:
    config = parsed(SETTINGS[data], SETTINGS[data].methods[name])
    others = {"shortcut-original": "shortcut", "reflow": TEACHER, "continuous-consistency-from-flow": "continuous-consistency"}
    plain = name.removesuffix("-teacher").removesuffix("-x")
    assert named(type(config.objective)) == ("shortcut" if data == "digits-ablations" else others.get(name, plain))
    assert getattr(config.objective, "distil", False) == (name.endswith("-teacher") or name == "mid-training")
    # Policies predict data, but for the method whose answer is noise.
    predicts_data = name.endswith("-x") or (data == "push-t" and name != "diffusion")
    assert (config.network.predict == "data") == predicts_data
    config.objective.check(config.batch)
    assert not (config.objective.continuous and getattr(config.network, "step", None) == "log2")
    # In the plane one network serves all, whose scale is small; what goes on from a flow model does so at a small rate.
    exempt = SETTINGS[data].script == "toy2d" or name.endswith("-from-flow")
    assert exempt or unsteady(config.objective, config.network.embed_scale) is None
    assert (config.objective.stages > 0) == SETTINGS[data].methods[name].teacher


@pytest.mark.parametrize(("data", "name"), ALL)
def test_budgets_are_equal(data: str, name: str, tmp_path: pathlib.Path) -> None:
    config = Config(data, runs=tmp_path)  # pyright: ignore[reportArgumentType]
    setting = config.setting
    budget = parsed(setting, setting.methods["shortcut"]).steps
    phases = lengths(config, name, budget, None)
    if setting.whole:
        assert set(phases) == {budget}
        return
    assert budget - sum(phases) in (0, 1)
    costs = {TEACHER: 1.0} | {method: 1 + 0.1 * i for i, method in enumerate(setting.methods)}
    found = lengths(config, name, budget, costs)
    spent = sum(n * costs[phase] for n, phase in zip(found, [TEACHER, name][-len(found) :], strict=True))
    if setting.methods[name].pairs:
        spent += setting.pairs * setting.grid / (3 * parsed(setting, setting.methods[name]).batch)
    # Rounded to whole steps.
    assert spent == pytest.approx(budget * costs["shortcut"], abs=sum(costs[phase] for phase in (TEACHER, name)))


def test_each_ablation_changes_something_and_no_two_are_one() -> None:
    setting = SETTINGS["digits-ablations"]
    found = {name: parsed(setting, method) for name, method in setting.methods.items()}
    assert len(set(map(repr, found.values()))) == len(found)
    # One row is the data set's.
    assert found["bootstrap-weight-4"] == parsed(SETTINGS["digits"], SETTINGS["digits"].methods["shortcut"])


def test_the_phases_of_a_method_hand_over(tmp_path: pathlib.Path) -> None:
    config = Config("digits", runs=tmp_path)
    teacher, student = (
        dict(itertools.pairwise(words)) for words in commands(config, Cell("progressive-distillation", 3), [7, 5])
    )
    assert pathlib.Path(student["--teacher"]) == tmp_path / "digits" / teacher["--name"]
    assert (teacher["--steps"], student["--steps"], teacher["--seed"], student["--seed"]) == ("7", "5", "3", "3")
    assert student["--name"] == "progressive-distillation-3"
    first, pairs, last = commands(config, Cell("reflow", 0), [7, 5])
    assert pairs[:4] == ("python", "-m", "eqx_shortcut", "pairs")
    assert pathlib.Path(pairs[4]) == tmp_path / "digits" / dict(itertools.pairwise(first))["--name"]
    begun, goes_on = commands(config, Cell("continuous-consistency-from-flow", 0), [7, 5])
    of_both = [dict(itertools.pairwise(words)) for words in (begun, goes_on)]
    assert "objective:flow-matching" in begun and of_both[0]["--network.embed-scale"] == of_both[1]["--network.embed-scale"]
    assert pathlib.Path(of_both[1]["--init-from"]) == tmp_path / "digits" / of_both[0]["--name"]
    told = dict(itertools.pairwise(last))
    assert told["--pairs"] == dict(itertools.pairwise(pairs))["--out"]
    assert told["--init-from"] == pairs[4]
    # What is compared is judged in the features of the setting, what it starts from is not.
    first, last = commands(Config("fashion-mnist", runs=tmp_path), Cell("consistency-distillation", 0), [7, 5])
    assert "--quality.features" not in first and "--quality.features" in last


def test_every_training_is_told_more(tmp_path: pathlib.Path) -> None:
    config = Config("cifar10", runs=tmp_path, more="--data.path 'a folder' --steps 3")
    for words in commands(config, Cell("progressive-distillation", 0), [7, 5]):
        at = words.index("--data.path")
        # The budget has the last word.
        assert words[at + 1] == "a folder" and words[len(words) - 1 - words[::-1].index("--steps") + 1] in ("7", "5")


def test_one_teacher_serves_all_that_need_one_of_its_length_and_seed(tmp_path: pathlib.Path) -> None:
    config = Config("digits", runs=tmp_path)
    first = commands(config, Cell("reflow", 0), [7, 5])[0]
    assert commands(config, Cell("consistency-distillation", 0), [7, 5])[0] == first


def test_a_failing_run_is_named_and_the_others_go_on() -> None:
    def job(*words: str) -> list[tuple[str, ...]]:
        return [("python", "experiments/digits.py", *words)]

    said = sorted(worked([job("--steps", "0"), job("--help")], 2))
    assert said[0] == "" and "digits.py --steps 0" in said[1] and "error: --steps 0: use 1 or more" in said[1]


def test_what_went_wrong_is_said_at_once_though_there_is_no_table(tmp_path: pathlib.Path) -> None:
    args = ["digits", "--methods", "flow-matching", "--more=--batch 0", "--out", str(tmp_path), "--runs", str(tmp_path)]
    code, _, said = in_process("compare", args)
    wrong, last = said.index("digits.py objective:flow-matching"), said.index("holds no finished runs")
    assert code == 1 and wrong < said.index("error: --batch 0: use 1 or more") < last
    assert "\r" not in said  # a line now and then, where it is no terminal


@pytest.mark.parametrize("field", ["seeds", "steps", "workers"])
def test_a_table_of_nothing_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}=0: use 1 or more"):
        Config("digits", **{field: 0})


def made(words: tuple[str, ...]) -> pathlib.Path:
    """The folder of a training command as it is when its run is done."""
    told_of = dict(itertools.pairwise(words))
    folder = pathlib.Path(told_of["--runs"]) / "digits" / told_of["--name"]
    folder.mkdir(parents=True)
    record = {name: value for name, value in settings.dump(settings_of("digits", words[2:])).items() if name not in UNRECORDED}
    (folder / "config.json").write_text(json.dumps(record | {"shape": [8, 8, 1]}))
    (folder / "evaluation.json").write_text(json.dumps(quality(4.0)))
    return folder


def quality(distance: float) -> dict:
    rows = [{"steps": n, "frechet": distance / n, "accuracy": 1.0, "a std": 1.0} for n in (1, 2, 4, 8, 32, 128)]
    protocol = {"samples": 1400, "held-out images": 397}
    return results.converted({"protocol": protocol, "held_out": {"frechet": 0.5}, "results": rows})


def test_a_run_is_finished_if_it_is_the_one_that_was_asked_for(tmp_path: pathlib.Path) -> None:
    config = Config("digits", runs=tmp_path)
    (words,) = commands(config, Cell("shortcut", 0), [7])
    assert not finished(words)
    folder = made(words)
    assert finished(words)
    some = quality(4.0)
    (folder / "evaluation.json").write_text(json.dumps({**some, "results": some["results"][:3]}))
    assert not finished(words), "it was stopped while it was judged"
    (folder / "evaluation.json").unlink()
    assert not finished(words)
    batch = Config("digits", runs=tmp_path, more="--batch 32")
    for other, steps, what in ((config, 8, "steps is 8, there it is 7"), (batch, 7, "batch is 32")):
        with pytest.raises(ValueError, match=f"shortcut-0 holds another run: {what}.*--runs"):
            finished(commands(other, Cell("shortcut", 0), [steps])[0])


def test_a_table_keeps_the_runs_that_were_made_elsewhere(tmp_path: pathlib.Path) -> None:
    config = Config("digits", runs=tmp_path / "runs", out=tmp_path)
    made(commands(config, Cell("shortcut", 0), [2500])[0])
    os.utime(tmp_path / "runs" / "digits" / "shortcut-0" / "evaluation.json", (981201600, 981201600))
    # The user's own, not one of a seed.
    made(("python", "digits.py", "objective:flow-matching", "--runs", str(tmp_path / "runs"), "--name", "flow-matching"))
    stored = {"shortcut-1": {"evaluation": quality(2.0)}, "flow-matching-0": {"evaluation": quality(8.0), "made on": "a GPU"}}
    budget = record_of(config, 2500, None)
    (tmp_path / "table.json").write_text(json.dumps({"budget": budget, "commands": {"shortcut-1": ["python"]}, "runs": stored}))
    check_table(config, 2500, None)
    report(config, 2500, None, {"shortcut-0": ["python too"]})
    first, second = (tmp_path / "table.md").read_text().split("\n\n")
    assert second.startswith("| share that a classifier gives its label |") and "| shortcut, 2 seeds | 1 (1 to 1) |" in second
    *_, flow, shortcut, floor = first.splitlines()
    assert flow == "| flow-matching, 1 seed | 8 | 4 | 2 | 1 | 0.25 | 0.0625 |"
    assert shortcut.startswith("| shortcut, 2 seeds | 3 (2 to 4) | 1.5 (1 to 2) | 0.75 (0.5 to 1) |")
    assert floor.startswith("| 397 held-out images, of 1,400 samples | 0.5 ")
    again = json.loads((tmp_path / "table.json").read_text())
    assert again["commands"] == {"shortcut-1": ["python"], "shortcut-0": ["python too"]}
    assert list(again["runs"]) == ["flow-matching-0", "shortcut-0", "shortcut-1"]
    assert again["runs"]["flow-matching-0"]["made on"] == "a GPU" and again["runs"]["shortcut-0"]["made on"]["chip"] == "cpu"
    assert again["runs"]["shortcut-0"]["made on"]["date"] == "2001-02-03"
    with pytest.raises(ValueError, match=r"table.json is another table: .*--out"):
        check_table(config, 100, None)
    with pytest.raises(ValueError, match=r"table.json holds flow-matching, no methods of today. .*--out"):
        check_table(dataclasses.replace(config, data="digits-ablations"), 2500, None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", r"is no file of benchmarks/cost.py .*name one"),
        ('{"results": {}}', r"is no file of benchmarks/cost.py .*name one"),
        ('{"data": "fashion-mnist", "results": {}}', "is of fashion-mnist: measure those of digits"),
        ('{"data": "digits", "results": {}}', "does not know .*shortcut"),
    ],
)
def test_costs_of_something_else_are_refused(tmp_path: pathlib.Path, content: str, words: str) -> None:
    (tmp_path / "costs.json").write_text(content)
    with pytest.raises(ValueError, match=words):
        read_costs(Config("digits", costs=tmp_path / "costs.json"))


def test_a_budget_too_small_for_two_phases_is_refused_before_training() -> None:
    with pytest.raises(ValueError, match=r"--steps 1 leave none for reflow, of 2 phases: use more"):
        lengths(Config("digits"), "reflow", 1, None)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_table_figure_and_samples(tmp_path: pathlib.Path) -> None:
    tiny = "--more=--network.hidden 16 --network.depth 1 --network.heads 2 --batch 16 --quality.count 64"
    where = f"--out {tmp_path}/out --runs {tmp_path}/runs"
    args = [*f"digits --steps 4 --methods shortcut reflow --workers 2 {where}".split(), tiny]
    code, _, said = in_process("compare", args)
    assert code == 0, said
    record = json.loads((tmp_path / "out" / "table.json").read_text())
    assert list(record["runs"]) == ["shortcut-0", "reflow-0"]
    found = record["runs"]["reflow-0"]["evaluation"]["results"]
    assert [(row["steps"], row["training step"]) for row in found] == [(n, 2) for n in (1, 2, 4, 8, 32, 128)]
    text = (tmp_path / "out" / "table.md").read_text()
    for name in ("quality.png", "samples-1.png", "samples-4.png"):
        assert (tmp_path / "out" / name).stat().st_size > 1000
    # Again: nothing is trained, the table is the same; and what another method adds is added.
    before = snapshot(tmp_path / "runs")
    code, said, _ = in_process("compare", args)
    assert code == 0 and text in said and snapshot(tmp_path / "runs") == before
    assert in_process("compare", [*args, "--methods", "flow-matching"])[0] == 0
    assert list(json.loads((tmp_path / "out" / "table.json").read_text())["runs"]) == [
        "flow-matching-0",
        "shortcut-0",
        "reflow-0",
    ]


def test_help_names_the_data_sets() -> None:
    code, said, _ = in_process("compare", ["--help"])
    assert code == 0
    assert all(data in said for data in SETTINGS)
