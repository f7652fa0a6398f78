"""The commands on a trained run: what they write is what the library draws, and what cannot be done is one sentence."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageSequence
import pytest
from jax import export as jax_export

import eqx_shortcut
from autoencoders import write_autoencoder
from commands import in_process
from eqx_shortcut import figures, samplers, settings
from eqx_shortcut.commands import _opening, export, interpolate
from eqx_shortcut.data import Digits
from eqx_shortcut.data.points import PlanePoints
from eqx_shortcut.decoding import pictures
from eqx_shortcut.evaluate import results
from eqx_shortcut.figures import to_bytes
from eqx_shortcut.models import MLPConfig
from eqx_shortcut.objectives import ConsistencyTraining, Shortcut
from eqx_shortcut.pretrained.autoencoder import decode_batch, from_training
from eqx_shortcut.pretrained.autoencoder_files import load_autoencoder
from eqx_shortcut.sampling import Sampling
from runs import CLASSES, SHAPE, write_run

COUNT, BATCH = 7, 3


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with an autoencoder and runs: `plain` and `consistency` on images, `latent` on latents."""
    folder = tmp_path_factory.mktemp("inference")
    vae = write_autoencoder(folder / "vae")
    plain = write_run(folder / "plain")
    shutil.copytree(plain, folder / "consistency")
    record = settings.read(plain / "config.json") | {"objective": settings.dump(ConsistencyTraining(steps=4))}
    (folder / "consistency" / "config.json").write_text(json.dumps(record))
    write_run(folder / "latent", shape=(4, 4, 2), vae=str(vae))
    return folder


@pytest.fixture(scope="module")
def run(base: pathlib.Path) -> pathlib.Path:
    return base / "plain"


@pytest.fixture(scope="module")
def model(run: pathlib.Path) -> eqx_shortcut.Trained:
    return eqx_shortcut.load(run)


def done(script: str, *args: Any) -> str:
    """What a command that works prints."""
    code, out, err = in_process(script, [str(arg) for arg in args])
    assert code == 0, err
    return out


def refused(script: str, *args: Any) -> str:
    """The sentence of a command that does not."""
    code, _, err = in_process(script, [str(arg) for arg in args])
    assert code in (1, 2) and "Traceback" not in err
    return " ".join(err.replace("│", " ").split())


def drawn(model: eqx_shortcut.Trained, seed: int = 0, **more: Any) -> np.ndarray:
    """Samples as bytes, from the library: in batches as the commands below make them."""
    return to_bytes(np.asarray(eqx_shortcut.sample(model, jax.random.key(seed), COUNT, batch=BATCH, **more)))


def read_folder(folder: pathlib.Path) -> np.ndarray:
    """Every picture of a folder in order of its name."""
    return np.stack([np.asarray(PIL.Image.open(path))[..., None] for path in sorted(folder.glob("*.png"))])


def to_folder(run: pathlib.Path, out: pathlib.Path, *args: Any) -> str:
    return done("sample", run, "--steps", 1, "--count", COUNT, "--batch", BATCH, "--out", out, *args)


# Sampling


def test_a_folder_holds_every_sample_by_its_number(run, model, tmp_path):
    to_folder(run, tmp_path / "samples")
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {
        "samples.json",
        *(f"{i:06d}.png" for i in range(COUNT)),
    }
    np.testing.assert_array_equal(read_folder(tmp_path / "samples"), drawn(model))


def test_an_interrupted_folder_goes_on_and_may_grow_and_keeps_whole_files(run, model, tmp_path, monkeypatch):
    folder, write, written = tmp_path / "samples", figures.picture, []

    def limited(image, path):
        if len(written) == 4:
            raise OSError("disk full")
        written.append(path)
        write(image, path)

    monkeypatch.setattr(figures, "picture", limited)
    assert "disk full" in refused("sample", run, "--steps", 1, "--count", 5, "--batch", BATCH, "--out", folder)
    monkeypatch.setattr(figures, "picture", write)
    assert len(list(folder.glob("*.png"))) == 4
    PIL.Image.new("L", SHAPE[:2], 7).save(folder / "000000.png")
    to_folder(run, folder)
    found = read_folder(folder)
    assert (found[0] == 7).all()
    np.testing.assert_array_equal(found[1:], drawn(model)[1:])


def test_runs_without_labels_are_drawn_from_too(tmp_path):
    """Points, of which there are no pictures and no pairs, and photos."""
    points = write_run(tmp_path / "points", (2,), network=MLPConfig(hidden=8, depth=1), classes=0)
    photos = write_run(tmp_path / "photos", classes=0)
    done("sample", points, "--steps", 1, "--count", COUNT, "--batch", BATCH, "--out", tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as found:
        expected = eqx_shortcut.sample(eqx_shortcut.load(points), jax.random.key(0), COUNT, batch=BATCH)
        np.testing.assert_array_equal(found["arr_0"], expected)
        assert list(found) == ["arr_0"]
    to_folder(photos, tmp_path / "samples")
    photo = eqx_shortcut.load(photos)
    np.testing.assert_array_equal(read_folder(tmp_path / "samples"), drawn(photo))
    done("trajectory", photos, "--steps", 1, "--columns", 2, "--out", tmp_path / "way.png")
    draw = export.sampler(export.Config(points), eqx_shortcut.load(points), None)
    np.testing.assert_array_equal(draw(np.uint32(0), np.zeros(BATCH, np.int32)), expected[:BATCH])
    config = MLPConfig(hidden=8, depth=1, observed=2)
    seen = write_run(tmp_path / "seen", network=config, classes=0, null=settings.dump_arrays(np.zeros(2, np.float32)))
    assert "not labels: sample for some of them" in refused("trajectory", seen, "--out", tmp_path / "way.png")
    (seen / "config.json").write_text(json.dumps(settings.read(seen / "config.json") | {"unconditional": True}))
    to_folder(seen, tmp_path / "unseen")
    np.testing.assert_array_equal(read_folder(tmp_path / "unseen"), drawn(eqx_shortcut.load(seen)))
    assert "are of shape (2,) with 0 classes, and pairs are of images" in refused("pairs", points, "--out", tmp_path / "p")
    record = settings.read(points / "config.json") | {"data": settings.dump(PlanePoints(count=10))}
    (points / "config.json").write_text(json.dumps(record))
    assert "which are no stored images: name statistics of images" in refused("evaluate", points, "--features", "pixels")


def test_a_folder_of_other_samples_is_refused(run, tmp_path):
    to_folder(run, tmp_path / "samples")
    line = ("--steps", 1, "--count", COUNT, "--out", tmp_path / "samples")
    assert "holds other samples: labels is [3]" in refused("sample", run, *line, "--labels", 3)
    said = refused("sample", run, *line, "--seed", 0, 1)
    assert "seeds is [0, 1]" in said and "name another --out" in said


@pytest.mark.parametrize(
    "args", [(), ("--class", "bag", "sandal", "bag"), ("--guidance", 2, "--guidance-interval", 0, 0.5, "--labels", 4)]
)
def test_an_array_holds_every_sample_as_bytes_with_its_label(run, model, tmp_path, args):
    to_folder(run, tmp_path / "samples.npz", *args, "--seed", 5, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["samples.npz"]
    labels, more = np.arange(COUNT) % CLASSES, {}
    if "--class" in args:
        labels = np.resize([8, 5, 8], COUNT)
    if "--guidance" in args:
        labels, more = np.full(COUNT, 4), {"steps": Sampling(guidance=2.0, guidance_interval=(0.0, 0.5))}
    with np.load(tmp_path / "samples.npz") as found:
        assert found["arr_0"].dtype == np.uint8
        expected = [drawn(model, seed, labels=jnp.asarray(labels), **more) for seed in (5, 0)]
        np.testing.assert_array_equal(found["arr_0"], np.concatenate(expected))
        np.testing.assert_array_equal(found["labels"], np.tile(labels, 2))


def test_samples_of_latents_reach_a_folder_decoded(base, tmp_path):
    to_folder(base / "latent", tmp_path / "samples")
    found = np.stack([np.asarray(PIL.Image.open(path)) for path in sorted((tmp_path / "samples").glob("*.png"))])
    autoencoder, model = load_autoencoder(base / "vae"), eqx_shortcut.load(base / "latent")
    x = eqx_shortcut.sample(model, jax.random.key(0), COUNT, batch=BATCH)
    assert found.shape == (COUNT, 8, 8, 3)
    np.testing.assert_allclose(found, to_bytes(decode_batch(autoencoder, from_training(autoencoder, x))), atol=1)


@dataclasses.dataclass(frozen=True)
class Negatives(Digits):
    """Images whose source draws samples in another way."""

    def pictures(self, samples: np.ndarray) -> np.ndarray:
        """Black for white."""
        return -samples


def test_samples_become_pictures_from_python_too(base, tmp_path):
    x = np.random.default_rng(0).uniform(-1, 1, (2, 4, 4, 2)).astype(np.float32)
    autoencoder = load_autoencoder(base / "vae")
    draw, other = pictures(base / "latent"), pictures(base / "latent", vae=base / "vae")
    assert draw is not None and other is not None
    np.testing.assert_array_equal(draw(x), decode_batch(autoencoder, from_training(autoencoder, jnp.asarray(x))))
    np.testing.assert_array_equal(other(x), draw(x))
    with pytest.raises(ValueError, match=r"no autoencoder is at .*gone: name its place"):
        pictures(base / "latent", vae=tmp_path / "gone")
    sources = (SHAPE, Digits()), (SHAPE, Negatives()), ((4, 4, 2), Digits())
    runs = [write_run(tmp_path / f"{i}", shape=shape, data=settings.dump(data)) for i, (shape, data) in enumerate(sources)]
    images, (same, negative, none) = x[..., :1], map(pictures, runs)
    assert same is not None and negative is not None and none is None
    np.testing.assert_array_equal(same(images), images)
    np.testing.assert_array_equal(negative(images), -images)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("--out samples", "--steps 1 4 128: a folder or an array holds samples of one number of steps"),
        ("--out samples.npz", "--steps 1 4 128: a folder or an array holds samples of one number of steps"),
        ("--out samples.jpg", "samples.jpg does not say what to write: let its name end in .png or .npz"),
        ("--steps 1 --out samples --labels 12", "label 12 is not in 0 to 9 (or 10 for none)"),
        ("--steps 1 --out samples.npz --labels 1 -1", "error: --labels 1 -1: use 0 or more"),
        ("--steps 1 --out samples --count 0", "error: --count 0: use 1 or more"),
        ("--batch 0", "error: --batch 0: use 1 or more"),
        ("--seed -1", "error: --seed -1: use 0 or more"),
        ("--seed", "--seed without a number"),
    ],
)
def test_samples_that_cannot_be_written_leave_nothing(run, args, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in refused("sample", run, *args.split())
    assert list(tmp_path.iterdir()) == []


# Interpolation


def test_an_arc_is_of_unit_variance_and_ends_at_its_draws(key):
    one, other = ends = jax.random.normal(key, (2, 100, 100))
    points = np.asarray(interpolate.arc(ends, 5))
    np.testing.assert_allclose(points[[0, -1]], [one, other], atol=1e-6)
    np.testing.assert_allclose(points.std(axis=(1, 2)), 1, atol=5 / 100)
    np.testing.assert_allclose(points[2], (one + other) / np.sqrt(2), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "steps"), [("plain", 1), ("consistency", 2)])
def test_an_interpolation_ends_at_samples_and_goes_there_and_back(base, name, steps, tmp_path):
    out, gif, model = tmp_path / "grid.png", tmp_path / "way.gif", eqx_shortcut.load(base / name)
    line = ("--rows", 2, "--points", 5, "--columns", 3, "--out", out, "--gif", gif, "--class", "bag", "coat")
    said = done("interpolate", base / name, *line, "--steps", steps)
    assert "labels 8 (bag), 4 (coat)" in said and f"{steps} step" in said
    ends = to_bytes(
        np.asarray(eqx_shortcut.sample(model, jax.random.key(0), 5, steps=steps, labels=np.array([8, 8, 4, 4, 0])))
    )[:4]
    page = np.asarray(PIL.Image.open(out))[:, 8 + 7 * len("coat") :, 0]
    tiles = page.reshape(2, 68, 3, 68)[:, 0:64:16, :, 0:64:16].swapaxes(1, 2).astype(int)
    np.testing.assert_allclose(tiles[:, 0], ends[::2, ..., 0], atol=1)
    if name == "plain":  # elsewhere the far end has the new noise of the near one
        np.testing.assert_allclose(tiles[:, 2], ends[1::2, ..., 0], atol=1)
    with PIL.Image.open(gif) as film:
        assert film.size == (2 * 68, 68) and film.info["loop"] == 0
        frames = [np.asarray(frame.convert("L")).astype(int) for frame in PIL.ImageSequence.Iterator(film)]
    assert len(frames) == 8
    for there, back in ((1, 7), (2, 6), (3, 5)):
        np.testing.assert_array_equal(frames[there], frames[back])
    np.testing.assert_allclose(np.stack([frames[0][0:64:16, 0:64:16], frames[0][0:64:16, 68:132:16]]), tiles[:, 0], atol=1)
    np.testing.assert_allclose(np.stack([frames[4][0:64:16, 0:64:16], frames[4][0:64:16, 68:132:16]]), tiles[:, 2], atol=1)


# Trajectories


@pytest.mark.parametrize(
    ("count", "chosen", "places"),
    [(9, 9, range(9)), (3, 9, range(3)), (129, 9, range(0, 129, 16)), (5, 2, (0, 4)), (1, 4, (0,))],
)
def test_points_are_spread_evenly_from_the_first_to_the_last(count, chosen, places):
    assert _opening.evenly(count, chosen) == list(places)


def test_a_trajectory_ends_at_the_sample_in_every_row(run, model, tmp_path):
    out = tmp_path / "way.png"
    line = ("--steps", 1, 3, 8, "--columns", 4, "--sample", 2, "--class", "bag", "--seed", 3, "--out", out)
    assert "sample 2, bag, seed 3" in done("trajectory", run, *line)
    page = np.asarray(PIL.Image.open(out))[:, 8 + 7 * len("data seen from there") :, 0]
    tiles = page.reshape(6, 68, 4, 68)[:, 0:64:16, :, 0:64:16].swapaxes(1, 2).astype(int)
    place = jnp.array([2])
    start = to_bytes(np.asarray(eqx_shortcut.trained.noise(model, jax.random.key(3), place)))[0, ..., 0]
    for row, steps in enumerate((1, 3, 8)):
        end = to_bytes(np.asarray(eqx_shortcut.sample(model, jax.random.key(3), 1, first=2, steps=steps, labels=8)))[0, ..., 0]
        np.testing.assert_allclose(tiles[2 * row, 0], start, atol=1)
        np.testing.assert_allclose(tiles[2 * row, 3], end, atol=1)
        np.testing.assert_array_equal(tiles[2 * row, 3], tiles[2 * row + 1, 3])
    assert (tiles[:2, 1:3] == 255).all() and not (tiles[2::2, 1:3] == 255).all(axis=(2, 3)).any()
    one = to_bytes(np.asarray(eqx_shortcut.sample(model, jax.random.key(3), 1, first=2, labels=8)))[0, ..., 0]
    np.testing.assert_allclose(tiles[1::2, 0], np.stack([one] * 3), atol=1)


# Export

ALONE = """
import sys
for name in ("eqx_shortcut", "equinox", "jaxtyping", "beartype", "optax"):
    sys.modules[name] = None
{use}
np.savez(sys.argv[1], x, draw(np.uint32(0), np.arange(2, dtype=np.int32)))
"""


def test_an_exported_file_used_as_is_printed_draws_the_same_samples_with_jax_alone(base, tmp_path):
    pytest.importorskip("flatbuffers", reason="the file's format: pip install flatbuffers")
    said = done("export", base / "consistency", "--steps", 2, "--out", tmp_path / "model.bin")
    assert "for cpu, cuda, tpu" in said and "# x: images in [-1, 1] up to overshoot, (count, 4, 4, 1)" in said
    code = ALONE.format(use=said.split("to use it:\n")[1])
    result = subprocess.run(
        [sys.executable, "-I", "-c", code, str(tmp_path / "x.npz")], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    expected = eqx_shortcut.sample(eqx_shortcut.load(base / "consistency"), jax.random.key(0), 16, steps=2)
    with np.load(tmp_path / "x.npz") as found:
        for count, x in zip((16, 2), found.values(), strict=True):
            np.testing.assert_allclose(x, expected[:count], atol=1e-4)


def test_a_decoder_is_in_the_file_if_asked_for_and_guidance_too(base, tmp_path):
    pytest.importorskip("flatbuffers", reason="the file's format: pip install flatbuffers")
    assert "latents in the units of training" in done("export", base / "latent", "--out", tmp_path / "model.bin")
    done("export", base / "latent", "--decode", "--guidance", 2, "--out", tmp_path / "model.bin")
    autoencoder, model = load_autoencoder(base / "vae"), eqx_shortcut.load(base / "latent")
    expected = eqx_shortcut.sample(model, jax.random.key(9), 3, Sampling(guidance=2.0))
    draw = jax_export.deserialize(bytearray((tmp_path / "model.bin").read_bytes())).call
    found = draw(np.uint32(9), np.arange(3, dtype=np.int32))
    np.testing.assert_allclose(found, decode_batch(autoencoder, from_training(autoencoder, expected)), atol=1e-4)


def test_what_cannot_be_exported_is_one_sentence(base, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "error: --steps 0: use 1 or more" in refused("export", run, "--steps", 0)
    assert "nowhere is not a run folder" in refused("export", "nowhere")
    assert "no folder" in refused("export", run, "--out", "nowhere/model.bin")
    assert "draws pictures and has no autoencoder" in refused("export", run, "--decode")
    assert "name its place with --vae" in refused("export", base / "latent", "--decode", "--vae", "gone")
    assert "leave it at 1, or insist with --guide-always" in refused("export", base / "consistency", "--guidance", 2)
    assert list(tmp_path.iterdir()) == []


def test_weights_beyond_the_format_are_refused_before_they_are_lowered(run, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "LIMIT", 1000)
    with pytest.raises(ValueError, match=r"GiB of weights do not fit into a file of jax.export"):
        export.main(export.Config(run, out=tmp_path / "model.bin"))
    assert list(tmp_path.iterdir()) == []


# What all have in common


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["interpolate", "--columns", "9", "--points", "8"], "use as many points as columns, or more"),
        (["interpolate", "--rows", "0"], "error: --rows 0: use 1 or more"),
        (["interpolate", "--gif", "way.png"], "way.png does not say what to write: let its name end in .gif"),
        (["interpolate", "--class", "banana"], "no class is called 'banana'"),
        (["trajectory", "--steps", "1", "0"], "error: --steps 1 0: use 1 or more"),
        (["trajectory", "--columns", "1"], "error: --columns 1: use 2 or more"),
        (["trajectory", "--labels", "11"], "label 11 is not in 0 to 9"),
        (["trajectory", "--out", "way"], "way does not say what to write: let its name end in .png"),
        (["trajectory", "--step", "7"], "no checkpoint 7 in"),
    ],
)
def test_a_picture_that_cannot_be_drawn_is_refused_in_one_sentence(run, line, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in refused(line[0], run, *line[1:])
    assert list(tmp_path.iterdir()) == []


def test_guidance_that_a_network_contains_is_said_not_to_apply(base):
    model = eqx_shortcut.Trained(None, Shortcut(steps=4, guidance=2.0), SHAPE, CLASSES, 1)
    notes = [Sampling(steps, 2.0).note(model.objective) for steps in (1, 4)]
    assert notes == ["guidance 2.0 (not applied: not what the network was trained for at this step size)", "guidance 2.0"]
    assert Sampling(1, 2.0, guide_always=True).note(model.objective) == "guidance 2.0"
    options = _opening.SamplingOptions(guidance_interval=(0.25, 1.0), sampler="heun")
    assert options.sampling(4, 2.0).note(model.objective) == "guidance 2.0 at times 0.25 to 1, heun"


def test_help_comes_before_anything_heavy_is_imported():
    names = ("sample", "interpolate", "trajectory", "export", "plot")
    code = f"""
import sys
from eqx_shortcut import cli
cli.main(["--help"])
for name in {names}:
    try:
        cli.main([name, "--help"])
    except SystemExit as stop:
        assert stop.code == 0
assert not {{"jax", "numpy", "matplotlib", "PIL"}} & sys.modules.keys(), sys.modules.keys()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("--out") >= len(names)


# Results


def write_results(folder: pathlib.Path, values: dict[int, float], *, guidance: float = 1.0, samples: int = 10) -> pathlib.Path:
    """A run that judged itself."""
    folder.mkdir()
    rows = [{"steps": n, "frechet": value, "accuracy": 0.9} for n, value in values.items()]
    protocol = {"samples": samples, "guidance": guidance}
    quality = {"protocol": protocol, "held_out": {"frechet": 0.5, "accuracy": 1.0}, "results": rows}
    results.write_results(folder, results.converted(quality))
    return folder


def write_evaluation(folder: pathlib.Path, fid: dict[tuple[int, float], float]) -> pathlib.Path:
    """What eqx-shortcut evaluate measured of a run, by number of steps and guidance."""
    folder.mkdir(exist_ok=True)
    found = [
        {
            "steps": steps,
            "guidance": guidance,
            "weights": "ema",
            "training step": 9,
            "count": 100,
            "protocol": {"labels": "balanced", "guidance": "applied", "statistics": "abc"},
            "measures": {"FID": value, "KID": -value},
        }
        for (steps, guidance), value in fid.items()
    ]
    there = results.read_results(folder)
    new = {"results": [*there["results"], *found], "floors": {**there["floors"], "abc, 100": {"FID": 1.25}}}
    (folder / "evaluation.json").write_text(json.dumps(new))
    return folder


def test_runs_of_one_name_are_one_curve_of_all_their_seeds(tmp_path):
    runs = [write_results(tmp_path / f"a-{seed}", {1: 3.0 + seed, 4: 2.0}) for seed in (0, 1, 12)]
    runs.append(write_results(tmp_path / "b", {1: 9.0}))
    found = results.compare(runs)
    assert found.measure == "frechet" and list(found.floors) == [0.5] and found.notes == []
    assert found.curves == {"a": {1: [3, 4, 15], 4: [2, 2, 2]}, "b": {1: [9]}}
    assert results.compare(runs, "accuracy", ["x", "y", "x", "y"]).curves["x"] == {1: [0.9, 0.9], 4: [0.9, 0.9]}
    table = results.table(found).splitlines()
    assert table[0] == "| pixel Frechet distance | 1 step | 4 steps |"
    assert table[2:] == [
        "| a, 3 seeds | 7.33 (3 to 15) | 2 (2 to 2) |",
        "| b, 1 seed | 9 |  |",
        "| held-out images | 0.5 | |",
    ]


def test_an_evaluation_comes_before_what_training_measured_and_each_guidance_is_a_curve(tmp_path):
    run = write_results(tmp_path / "a-0", {1: 3.0})
    write_evaluation(run, {(1, 1.0): 7.0, (4, 1.0): 6.0, (1, 1.5): 5.0})
    found = results.compare([run])
    assert found.measure == "FID" and list(found.floors) == [1.25]
    assert found.curves == {"a, guidance 1.0": {1: [7], 4: [6]}, "a, guidance 1.5": {1: [5]}}
    assert results.compare([run], "frechet").curves == {"a": {1: [3]}}
    other = write_results(tmp_path / "b", {1: 2.0}, samples=20)
    assert results.compare([run, other]).measure == "frechet"
    third = write_results(tmp_path / "c", {1: 2.0})
    assert results.compare([run, other, third]).notes == ["count: 10 (a-0, c); 20 (b)"]


def test_what_cannot_be_compared_is_one_sentence(tmp_path):
    one, two = write_results(tmp_path / "one", {1: 3.0}), write_evaluation(tmp_path / "two", {(1, 1.0): 2.0})
    line = ("--out", tmp_path / "figure.png")
    assert "two has no measure frechet: it has FID, KID" in refused("plot", two, one, "--measure", "frechet", *line)
    assert "the runs have no measure in common: " in refused("plot", two, one, *line)
    assert "holds no results, no evaluation.json" in refused("plot", tmp_path, *line)
    assert "--group names 1 of 2 runs: name each, or none" in refused("plot", one, two, "--group", "a")
    assert "let its name end in .png or .svg or .pdf" in refused("plot", one, "--out", tmp_path / "figure.jpg")
    (one / "evaluation.json").write_text('{"results": [{}]}')
    assert "cannot be read" in refused("plot", one, *line)


def test_results_of_an_earlier_version_are_converted(tmp_path):
    """A run keeps what `evaluate` measured; steps that guidance was not applied to say so; a table of such runs likewise."""
    rows = [{"steps": n, "frechet": 4.0 / n} for n in (1, 4)]
    protocol = {
        "samples": 10,
        "guidance": "1.5, not applied in 1 steps",
        "weights": "ema",
        "training step": 9,
        "seed of noise": 0,
    }
    quality = {"protocol": protocol, "held_out": {"frechet": 0.5}, "results": rows}
    old, kept = tmp_path / "old", write_evaluation(tmp_path / "kept", {(1, 1.0): 2.0})
    old.mkdir()
    for run in (old, kept):
        (run / "quality.json").write_text(json.dumps(quality))
    assert f"eqx-shortcut convert {old}" in refused("plot", old, "--out", tmp_path / "figure.png")
    (tmp_path / "table.json").write_text(json.dumps({"runs": {"a-0": {"quality": quality, "made on": "a GPU"}}}))
    done("convert", old, kept, kept, tmp_path / "table.json")
    assert [row["protocol"]["guidance"] for row in results.read(old)["results"]] == ["not applied", "applied"]
    found = results.compare([old])
    assert found.curves == {"old": {1: [4.0], 4: [1.0]}} and list(found.floors) == [0.5]
    assert [list(row["measures"]) for row in results.read(kept)["results"]] == [["FID", "KID"], ["frechet"], ["frechet"]]
    table = json.loads((tmp_path / "table.json").read_text())["runs"]["a-0"]
    assert table == {"evaluation": results.read(old), "made on": "a GPU"}
    assert "there is nothing to convert" in refused("convert", tmp_path)


def test_a_measure_that_the_real_ones_lack_is_blank_in_their_row(tmp_path):
    rows = [{"steps": 1, "score": 0.5, "milliseconds": 2.0}]
    protocol = {"samples": 10, "floor": "people"}
    results.write_results(tmp_path, results.converted({"protocol": protocol, "held_out": {"score": 0.9}, "results": rows}))
    assert "| 1 | 1 | 0.5 | 2 |\n| people |  | 0.9 |  |" in (tmp_path / "evaluation.md").read_text()
    assert results.compare([tmp_path]).floors == {0.9: "people"}


def test_figures_are_of_the_format_that_their_name_says_and_the_same_again(tmp_path):
    runs = [write_results(tmp_path / f"a-{seed}", {1: 3.0 + seed, 4: 2.0, 128: 1.0}) for seed in (0, 1)]
    runs.append(write_evaluation(tmp_path / "b", {(1, 1.0): 2.0, (8, 1.0): 3.0}))
    for name, start in (("one.png", b"\x89PNG"), ("one.svg", b"<?xml"), ("two.svg", b"<?xml"), ("one.pdf", b"%PDF")):
        done("plot", *runs[:2], "--out", tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    said = done("plot", runs[2], "--measure", "KID", "--title", "distance of kernels", "--out", tmp_path / "kid.svg")
    assert "| KID | 1 step | 8 steps |" in said and "| b, 1 seed | -2 | -3 |" in said


def test_another_sampler_and_its_times_are_chosen_by_name(run, model, tmp_path):
    to_folder(run, tmp_path / "samples.npz", "--sampler", "midpoint", "--time-shift", 2, "--steps", 2)
    sampler = samplers.Sampler(samplers.midpoint, samplers.Shifted(2.0))
    with np.load(tmp_path / "samples.npz") as found:
        np.testing.assert_array_equal(found["arr_0"], drawn(model, 0, steps=Sampling(2, sampler=sampler)))
    assert "name it with --sampler" in refused("sample", run, "--time-shift", 2)
