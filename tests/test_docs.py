"""The pages under docs/ agree with the code and with the files that they name."""

import dataclasses
import importlib
import importlib.util
import json
import pathlib
import re
import shlex
import sys
import typing
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import matplotlib
import pytest

matplotlib.use("agg")
from matplotlib import pyplot

from eqx_shortcut import cli
from scripts import EXPERIMENTS, script

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*DOCS.rglob("*.md"), *ROOT.glob("*.md")]
NOTEBOOK = json.loads((DOCS / "quickstart.ipynb").read_text())


def from_docs(name: str) -> Any:
    """A module of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(DOCS))  # as mkdocs has it for a hook
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(DOCS))
    return module


@pytest.fixture(scope="module")
def formulas() -> Any:
    return from_docs("formulas")


@pytest.mark.parametrize(
    "text", ["u = v + d Du/Dt", "1/sg(err + eps)^p", "x_t", "u^-", "v~", "mean |u - sg(F + g)|^2", "d -> 0"]
)
def test_a_formula_is_drawn(formulas, text):
    assert formulas.is_formula(text)
    drawn = formulas.mathml(text, block=True)
    root = ElementTree.fromstring(drawn)
    assert root.tag == "math" and root.get("alttext") == text
    # Nothing is lost: letters and numbers stand there in their order, whatever is drawn above or below.
    letters = re.sub(r"[^A-Za-z0-9ε]", "", "".join(root.itertext()).replace("∂", "d"))
    assert letters == re.sub(r"[^A-Za-z0-9ε]", "", text.replace("eps", "ε"))


@pytest.mark.parametrize(
    "text", ["experiments/digits.py", "power=0", "guide_all", "(state, raw) -> (state, metrics)", "--seed 1", "'a'"]
)
def test_code_stays_code(formulas, text):
    assert not formulas.is_formula(text)
    assert formulas.in_page(f"<p><code>{text}</code></p>") == f"<p><code>{text}</code></p>"


def test_a_quotient_in_a_block_is_a_fraction(formulas):
    block = '<div class="highlight"><pre><span></span><code>a = (u1 + u2)/2   its mean\n</code></pre></div>'
    drawn = formulas.in_page(block)
    two = "<mrow><msub><mi>u</mi><mn>1</mn></msub><mo>+</mo><msub><mi>u</mi><mn>2</mn></msub></mrow>"
    assert f"<mfrac>{two}<mn>2</mn></mfrac>" in drawn and "<p>its mean</p>" in drawn and "<pre>" not in drawn


def test_the_site_has_a_page_of_the_notebook_and_figures_from_outside():
    pytest.importorskip("mkdocs", reason="pip install 'eqx_shortcut[docs]'")
    site = from_docs("site")
    page, pictures = site.from_notebook(NOTEBOOK)
    assert re.findall(r"!\[[^]]*\]\((.*?)\)", page) == list(pictures)
    assert all(picture.startswith(b"\x89PNG") for picture in pictures.values())
    linked = "[a](../experiments/results/digits_compare) ![b](../experiments/results/digits_compare/methods.png) [c](runs.md)"
    folder = "experiments/results/digits_compare"
    assert set(site.outside(linked, "results.md").values()) == {f"{folder}/table.json", f"{folder}/methods.png"}


def run_cells(names: dict[str, Any], *cells: int) -> None:
    """Cells of the quickstart by their numbers among those of code, in 200 steps of training."""
    sources = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        text = sources[cell].replace("STEPS = 3000", "STEPS = 200")
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as a reader has them
            exec(compile(text, f"quickstart.ipynb, cell {cell}", "exec"), names)


def test_the_quickstart_learns_points_in_the_plane():
    names: dict[str, Any] = {}
    run_cells(names, 0, 1, 2)
    data = names["eight_gaussians"](jax.random.key(3), 2000)
    # Distances of the points from the middle: about sqrt(2) in the data, Rayleigh in the noise.
    spread = {name: float(jnp.linalg.norm(x, axis=1).std()) for name, x in (("data", data), ("noise", names["noise"]))}
    reached = float(jnp.linalg.norm(names["many_steps"], axis=1).std())
    assert reached < (spread["data"] + spread["noise"]) / 2
    assert len(names["figure"].axes) == 4


def test_the_quickstart_opens_samples_and_guides_a_run(one_device, tmp_path, monkeypatch):
    from eqx_shortcut.data import Digits
    from eqx_shortcut.experiment import Config, Experiment, Figures, Quality
    from eqx_shortcut.models import DiTConfig
    from eqx_shortcut.objectives import Shortcut
    from eqx_shortcut.optimizer import AdamW

    monkeypatch.chdir(tmp_path)
    network, method = DiTConfig(hidden=8, depth=1, heads=1, patch=4), Shortcut(steps=4, bootstrap_every=2)
    silent = {"figures": Figures(batches=0), "quality": Quality(steps=())}
    digits = Config(Digits(), network, method, AdamW(), steps=1, batch=8, **silent)  # pyright: ignore[reportArgumentType]
    Experiment("digits", {"default": ("", digits)}).run(digits)
    names: dict[str, Any] = {"jax": jax, "jnp": jnp, "plt": pyplot}
    run_cells(names, 3, 4, 5)
    shapes = {name: [x.shape for x in names[name].values()] for name in ("rows", "guided")}
    assert shapes == {"rows": [(10, 8, 8, 1)] * 3, "guided": [(10, 8, 8, 1)] * 3}


def test_the_page_of_options_is_that_of_the_code():
    assert (DOCS / "options.md").read_text() == from_docs("generate").options(), "python docs/generate.py writes it anew"


def test_the_table_of_commands_is_that_of_the_code():
    page = (DOCS / "commands.md").read_text()
    assert page == from_docs("generate").commands(page), "python docs/generate.py writes it anew"


def command_lines() -> list[tuple[str, ...]]:
    """The commands of the library and of its experiments in all blocks of the pages, without those that leave words out."""
    blocks = "".join(block for page in PAGES for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL))
    lines = (shlex.split(line, comments=True) for line in blocks.replace("\\\n", " ").splitlines() if "..." not in line)
    return sorted({tuple(words) for words in lines if words[:1] == ["eqx-shortcut"] or "experiments/" in "".join(words[1:2])})


def test_every_command_of_the_pages_is_one_that_the_command_line_takes():
    lines = command_lines()
    assert len(lines) > 60
    for program, what, *rest in lines:
        experiment = script(pathlib.Path(what).stem) if program == "python" else None
        assert experiment is None or (EXPERIMENTS / pathlib.Path(what).name).exists()
        try:
            if experiment is not None and hasattr(experiment, "EXPERIMENT"):
                experiment.EXPERIMENT.parse(rest)
            else:
                module = experiment or importlib.import_module(f"eqx_shortcut.commands.{what}")
                cli.parse(module.Config, None, args=rest)
        except SystemExit:
            pytest.fail(shlex.join([program, what, *rest]))


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


def test_the_map_of_the_tree_leads_to_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = text[text.index("| question | answer |") :].partition("\n\n")[0].splitlines()[2:]
    assert len(table) == 20
    for row in table:
        places = re.findall(r"`([\w/]+(?:\.py|/))`", row)
        assert places, row
        assert all((ROOT / place).exists() or (ROOT / "eqx_shortcut" / place).exists() for place in places), row


def test_one_version_everywhere():
    import eqx_shortcut

    version = eqx_shortcut.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    (released, *_) = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released.split()[0] in ("Unreleased", version)


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
