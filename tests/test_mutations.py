"""The mutation run (benchmarks/mutations.py): its changes are changes, the listed ones still fit, and two of each fate."""

import ast
import importlib.util
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "mutations.py"
spec = importlib.util.spec_from_file_location("mutations", SCRIPT)
assert spec is not None and spec.loader is not None
mutations = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mutations)


def test_the_listed_changes_fit_the_code():
    assert len({mutant.source for mutant in mutations.by_hand()}) == len(mutations.KNOWN)


def test_every_module_has_tests_that_exist():
    for module, tests in (mutations.TESTS | mutations.ELSEWHERE).items():
        assert mutations.path_of(module).exists()
        assert all((ROOT / "tests" / name.partition("::")[0]).exists() for name in tests)


@pytest.mark.parametrize("module", ["guidance", "losses/_intervals", "objectives/_pairs"])
def test_each_mutant_is_another_program_and_but_for_it_the_same(module):
    same = ast.unparse(ast.parse(mutations.path_of(module).read_text()))
    mutants = mutations.mutants_of(module)
    assert mutants and len({mutant.name for mutant in mutants}) == len(mutants)
    for mutant in mutants:
        different = [pair for pair in zip(same.splitlines(), mutant.source.splitlines(), strict=True) if len(set(pair)) > 1]
        assert len(different) == 1, mutant.change


def test_operators_comparisons_branches_keywords_and_stopped_gradients_are_changed():
    source = "jax.lax.stop_gradient(a + f(b, key=3) if c < 2 else -d)"
    node = ast.parse(source, mode="eval").body
    holder = ast.Expression(node)
    found = {mutations.shown(other) for part, *_ in mutations.places(holder) for _, other in mutations.changes(part)}
    assert found == {"a + f(b, key=3) if c < 2 else -d", "a - f(b, key=3)", "a", "f(b)", "4", "c <= 2", "3", "d"} | {
        "-d if c < 2 else a + f(b, key=3)"
    }


@pytest.mark.slow
def test_every_equivalent_change_is_one_of_the_code():
    mutants = [mutant for module in mutations.TESTS for mutant in mutations.mutants_of(module)]
    reasons = {mutant.equivalent for mutant in mutants}
    assert set(mutations.EQUIVALENT.values()) <= reasons, "the code has changed: drop the entry, or write it anew"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_mutant_that_is_seen_is_killed_and_results_are_kept(tmp_path):
    out = tmp_path / "results.jsonl"
    command = [sys.executable, str(SCRIPT), "--module", "weights", "--sample", "3", "--unchecked", "--out", str(out)]
    for _ in range(2):  # the second time from the file
        ended = subprocess.run(command, capture_output=True, text=True, timeout=500)
        assert ended.returncode == 0 and "of 3 mutants killed" in ended.stdout, ended.stderr
    assert len(out.read_text().splitlines()) == 3
    assert len(mutations.results(out)) == 3
