"""The pages under docs/ agree with the code and with the files that they name."""

import dataclasses
import importlib.util
import pathlib
import re
import typing
from collections.abc import Iterator
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*DOCS.rglob("*.md"), *ROOT.glob("*.md")]


def from_docs(name: str) -> Any:
    """A module of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_options_is_that_of_the_code():
    assert (DOCS / "options.md").read_text() == from_docs("generate").options(), "python docs/generate.py writes it anew"


def test_the_table_of_commands_is_that_of_the_code():
    page = (DOCS / "commands.md").read_text()
    assert page == from_docs("generate").commands(page), "python docs/generate.py writes it anew"


def anchors(page: str) -> Iterator[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    for heading in re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page, flags=re.DOTALL), re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if target == DOCS / "quickstart.md":  # the site makes it of the notebook
            target = target.with_suffix(".ipynb")
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def options(kind: type, prefix: str = "") -> set[str]:
    """Every option of a dataclass of settings, nested ones with their prefix, those of unions for each member."""
    found = set()
    for name, hint in typing.get_type_hints(kind).items():
        option = f"{prefix}{name.replace('_', '-')}"
        members = [part for part in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(part)]
        found |= {option}.union(*(options(member, f"{option}.") for member in members if isinstance(member, type)))
    return found


def test_flag_table_names_options_that_exist_and_every_flag_of_the_original():
    from eqx_shortcut.commands import evaluate, sample
    from eqx_shortcut.experiment import config
    from eqx_shortcut.models import DiTConfig

    table = re.search(r"\| flag there \|.*?(?:\n\n|\Z)", (DOCS / "original.md").read_text(), re.DOTALL)
    assert table is not None
    rows = [row.split("|") for row in table[0].splitlines() if row.startswith("|")]
    methods = typing.get_args(config.AnyObjective)
    known = {"network", "objective", "data.*"}.union(
        options(DiTConfig, "network."),
        *(options(typing.get_args(method)[0], "objective.") for method in methods),
        *(options(kind) for kind in (config.Config, sample.Config, evaluate.Config)),
    )
    assert {name for row in rows for name in re.findall(r"--([a-z]+[a-z0-9.*-]*)", row[2])} <= known
    there = " ".join(row[1] for row in rows)
    missing = [flag for flag in ORIGINAL.split() if not re.search(rf"\b{flag}\b", there)]
    assert not missing


ORIGINAL = """
    dataset_name load_dir save_dir fid_stats seed log_interval eval_interval save_interval batch_size max_steps debug_overfit
    mode inference interpolate inference_timesteps inference_generations inference_cfg_scale
    lr beta1 beta2 weight_decay use_cosine warmup dropout hidden_size patch_size depth num_heads mlp_ratio class_dropout_prob
    num_classes denoise_timesteps cfg_scale target_update_rate use_ema use_stable_vae sharding bootstrap_cfg bootstrap_every
    bootstrap_ema bootstrap_dt_bias t_sampling dt_sampling train_type project name group entity run_id offline
"""
