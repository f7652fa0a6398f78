"""Latents through the commands: encoded, interrupted, contradicted, trained on, sampled and decoded."""

import dataclasses
import json
import pathlib
import resource
import shutil

import equinox as eqx
import jax
import numpy as np
import PIL.Image
import pytest

import dcaes
import eqx_shortcut
from autoencoders import KL, write_autoencoder
from commands import in_process, snapshot
from eqx_shortcut import flops, settings, sharding
from eqx_shortcut.data import Arrays, DataError, Encoded, ImageFolder, LatentImages, prepare, read_latents
from eqx_shortcut.data.encode import check_cache, encode
from eqx_shortcut.data.latents import MANIFEST, Shard
from eqx_shortcut.evaluate import frechet_distance, moments, pixels, results
from eqx_shortcut.experiment import plan
from eqx_shortcut.experiment.config import Config
from eqx_shortcut.experiment.judging import scaled
from eqx_shortcut.experiment.log import read_lines
from eqx_shortcut.experiment.run import Data, Run, open_data
from eqx_shortcut.models import DiTConfig
from eqx_shortcut.models.dit import preset
from eqx_shortcut.objectives import FlowMatching, Shortcut
from eqx_shortcut.optimizer import AdamW
from eqx_shortcut.pretrained.autoencoder import Autoencoder, Posterior, to_training
from eqx_shortcut.pretrained.autoencoder_files import load_autoencoder
from eqx_shortcut.pretrained.small_classifier import SmallClassifier, save_classifier
from scripts import script

DIGITS = script("digits").DEFAULT

COUNT, SIDE, SHARD = 24, 8, 8
TINY = (
    "--network.hidden 16 --network.depth 1 --network.heads 2 --batch 16 --encode-batch 8 --steps 4 "
    "--checkpoint.every 2 --sample-every 4 --log-every 1 --objective.steps 4 --optimizer.warmup 0 "
    "--figures.batches 0"
).split()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Images, two autoencoders and a finished cache; do not change them."""
    folder = tmp_path_factory.mktemp("latents")
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 12, 10, 3), np.uint8)
    np.savez(folder / "photos.npz", images=pixels, labels=np.arange(COUNT) % 3)
    write_autoencoder(folder / "vae")
    write_autoencoder(folder / "other", seed=1)
    assert run_encode(folder, folder / "cache")[0] == 0
    return folder


def run_encode(base: pathlib.Path, out: pathlib.Path, *args: str) -> tuple[int, str, str]:
    source = ["source:arrays", "--source.path", str(base / "photos.npz"), "--source.size", str(SIDE)]
    line = [*source, "--vae", str(base / "vae"), "--out", str(out), "--batch", "8", "--shard", str(SHARD), *args]
    return in_process("encode", [line[0], *merged(line[1:])])


def train(base: pathlib.Path, runs: pathlib.Path, *args: str, images: bool = True) -> tuple[int, str, str]:
    """The tiny run with some settings changed."""
    given = ["--data.path", str(base / "photos.npz"), "--data.size", "8"] if images else []
    chosen = merged([*TINY, *given, "--vae", str(base / "vae"), "--runs", str(runs), *args])
    return in_process("images", ["tiny", *(["data:arrays"] if images else []), *chosen])


def merged(args: list[str]) -> list[str]:
    """Options with the last of those that are given twice."""
    starts = [i for i, arg in enumerate(args) if arg.startswith("--")]
    options = {args[i]: args[i:j] for i, j in zip(starts, [*starts[1:], len(args)], strict=True)}
    return [part for option in options.values() for part in option]


def source(base: pathlib.Path) -> Arrays:
    return Arrays(path=base / "photos.npz", size=SIDE)


def refusal(result: tuple[int, str, str]) -> str:
    """What a command that was refused says at its end, in one line."""
    code, _, err = result
    assert code in (1, 2) and "Traceback" not in err, err
    lines = err.replace("│", " ").strip().splitlines()
    return lines[-1] if code == 1 else " ".join(" ".join(lines).split())


def encoded(autoencoder: Autoencoder, pixels: np.ndarray) -> Posterior:
    return eqx.filter_jit(lambda model, x: jax.vmap(model.encode)(x))(
        autoencoder, jax.numpy.asarray(pixels, np.float32) / 127.5 - 1
    )


def test_a_cache_holds_the_posterior_of_each_image_and_of_its_mirror_image(base, key):
    autoencoder = load_autoencoder(base / "vae")
    for part, images in zip(("train", "held_out"), source(base).build(), strict=True):
        latents = read_latents(base / "cache", part, check=True)
        assert latents.shape == autoencoder.latent_shape(images.shape) == (4, 4, KL.latent_channels)
        every = np.arange(len(images.labels))
        rows, pixels = latents.rows(every), images.rows(every)["pixels"]
        np.testing.assert_array_equal(rows["labels"], images.labels)
        for side, seen in enumerate((pixels, pixels[:, :, ::-1])):
            posterior = encoded(autoencoder, seen)
            assert posterior.log_variance is not None
            np.testing.assert_allclose(rows["moments"][:, side, 0], posterior.mean, atol=2e-3, rtol=2e-3)
            np.testing.assert_allclose(rows["moments"][:, side, 1], posterior.log_variance, atol=2e-3, rtol=2e-3)


@pytest.mark.slow
def test_a_cache_without_mirror_images_is_not_mirrored(base, tmp_path):
    assert run_encode(base, tmp_path / "cache", "--source.no-mirror")[0] == 0
    one, both = (read_latents(folder / "cache", "train") for folder in (tmp_path, base))
    assert (one.mirrored, both.mirrored) == (False, True)
    indices = np.arange(4)
    np.testing.assert_array_equal(one.rows(indices)["moments"], both.rows(indices)["moments"][:, :1])
    code, _, err = train(base, tmp_path, "--cache", str(tmp_path / "cache"))
    assert code == 1 and "holds no mirror images: use --data.no-mirror" in err
    code, _, err = train(base, tmp_path, "--cache", str(tmp_path / "cache"), images=False)
    assert code == 0, err


def test_encoding_in_the_step_draws_from_the_same_posterior(base, key):
    autoencoder, (images, _) = load_autoencoder(base / "vae"), source(base).build()
    data = Encoded(images, autoencoder, 8)
    rows = data.note(data.rows(np.zeros(512, np.int64)))
    split = sharding.batch_sharding(sharding.make_mesh())
    to_batch = eqx.filter_jit(prepare(data, mirror=False))
    x = to_batch({name: jax.device_put(a, split) for name, a in rows.items()}, key).x
    posterior = encoded(autoencoder, images.rows(np.arange(1))["pixels"])
    assert posterior.log_variance is not None
    deviation = np.exp(np.asarray(posterior.log_variance[0]) / 2) * KL.scaling_factor
    expected = to_training(autoencoder, jax.numpy.asarray(posterior.mean[0]))
    assert np.all(np.abs(np.asarray(x).mean(0) - expected) < 5 * deviation / np.sqrt(len(x)))
    np.testing.assert_allclose(np.asarray(x).std(0), deviation, rtol=0.2)


def test_parts_encoded_one_after_another_keep_their_order(base, key):
    autoencoder, (images, _) = load_autoencoder(base / "vae"), source(base).build()
    rows = images.note(images.rows(np.arange(16)))
    raw = {name: jax.numpy.asarray(array) for name, array in rows.items()}
    whole, parts = (prepare(Encoded(images, autoencoder, size))(raw, key).x for size in (16, 4))
    np.testing.assert_allclose(whole, parts, atol=1e-5)


def test_two_runs_and_an_interrupted_one_write_the_same_bytes(base, tmp_path):
    wanted = snapshot(base / "cache")
    out = tmp_path / "cache"
    assert run_encode(base, out)[0] == 0 and snapshot(out) == wanted
    Shard(out / "train", 1).checksum_file.unlink()
    Shard(out / "train", 1).moments.write_bytes(b"half")
    (out / MANIFEST).unlink()
    untouched = Shard(out / "train", 0).moments.stat().st_mtime_ns
    code, said, _ = run_encode(base, out)
    assert code == 0 and "23" not in said[:3] and snapshot(out) == wanted
    assert Shard(out / "train", 0).moments.stat().st_mtime_ns == untouched


def test_a_folder_of_other_latents_is_refused(base):
    before = snapshot(base / "cache")
    said = refusal(run_encode(base, base / "cache", "--shard", "4"))
    assert "holds another cache: shard is 4, there it is 8" in said
    said = refusal(in_process("encode", encode_line(base, base / "other")))
    assert "autoencoder.sha256 is" in said and snapshot(base / "cache") == before


def test_a_cache_goes_on_with_moved_images_and_not_with_others(base, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE, 3), np.uint8)
    for i, image in enumerate(pixels):
        path = tmp_path / "pets" / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image).save(path)
    autoencoder, cache = load_autoencoder(base / "vae"), tmp_path / "cache"

    def at(name: str) -> ImageFolder:
        return ImageFolder(path=tmp_path / name, size=SIDE)

    encode(at("pets"), autoencoder, cache, batch=8, shard=SHARD)
    assert read_latents(cache, "train").names == ("cat", "dog")
    (tmp_path / "pets").rename(tmp_path / "moved")
    check_cache(cache, at("pets"), autoencoder)  # images are not needed any more
    check_cache(cache, at("moved"), autoencoder)
    encode(at("moved"), autoencoder, cache, batch=8, shard=SHARD)
    (tmp_path / "moved" / "cat").rename(tmp_path / "moved" / "zebra")
    for refused in (
        lambda: check_cache(cache, at("moved"), autoencoder),
        lambda: encode(at("moved"), autoencoder, cache, batch=8, shard=SHARD),
    ):
        with pytest.raises(DataError, match=r"cache holds latents of other images: class 0 of 2 is 'dog' now, and was 'cat'"):
            refused()


def test_latents_that_are_not_finite_are_refused_with_their_image(base, tmp_path):
    broken = load_autoencoder(base / "vae")
    weights, rest = eqx.partition(broken, eqx.is_inexact_array)
    for factor, words in ((np.nan, "are not numbers"), (np.float32(1e30), "are (not numbers|beyond half precision)")):
        scaled = eqx.combine(jax.tree.map(lambda leaf, f=factor: leaf * np.asarray(f, leaf.dtype), weights), rest)
        with pytest.raises(DataError, match=rf"latents of image 0 of .*photos.npz {words}.*8 of 8 encoded together"):
            encode(source(base), scaled, tmp_path / str(factor), batch=8, shard=SHARD)
    assert not [*tmp_path.rglob(MANIFEST), *tmp_path.rglob("*.npy")]


def encode_line(base: pathlib.Path, vae: pathlib.Path) -> list[str]:
    line = ["source:arrays", "--source.path", str(base / "photos.npz"), "--source.size", str(SIDE), "--shard", str(SHARD)]
    return [*line, "--vae", str(vae), "--out", str(base / "cache")]


def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(base, tmp_path):
    """Files may become no longer than the settings of the cache, which its moments are."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))
    try:
        said = refusal(run_encode(base, tmp_path / "cache"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "00000.npy could not be written" in said and "free space on the disk and repeat the same command" in said
    assert run_encode(base, tmp_path / "cache")[0] == 0
    assert snapshot(tmp_path / "cache") == snapshot(base / "cache")


def test_latents_of_eight_channels_are_encoded_trained_on_and_drawn(base, tmp_path):
    """Those of a deep compression autoencoder: of four times fewer pixels a side, without a variance."""
    vae = ("--vae", str(dcaes.write(tmp_path / "vae", dcaes.SMALL["convolved"], dcaes.weights("convolved"))))
    assert run_encode(base, tmp_path / "cache", *vae)[0] == 0
    latents = read_latents(tmp_path / "cache", "train")
    assert latents.shape == (2, 2, 8) and latents.rows(np.arange(1))["moments"].shape == (1, 2, 1, 2, 2, 8)
    options = ("--cache", str(tmp_path / "cache"), "--network.patch", "1", "--steps", "2")
    code, _, err = train(base, tmp_path, *vae, *options, images=False)
    assert code == 0, err
    line = [str(tmp_path / "images" / "shortcut"), "--steps", "1", "--count", "4", "--columns", "4"]
    assert in_process("sample", [*line, "--out", str(tmp_path / "grid.png")])[0] == 0
    with PIL.Image.open(tmp_path / "grid.png") as picture:
        assert picture.size == (8 + 7 * len("1 step") + 4 * (64 + 4), 64 + 4) and picture.mode == "RGB"
    assert "is not the autoencoder of" in refusal(in_process("sample", [*line, "--vae", str(base / "vae")]))


@pytest.fixture(scope="module")
def trained(base: pathlib.Path) -> pathlib.Path:
    """A run on the cache, stopped in the middle and continued with cache and autoencoder elsewhere; do not change it."""
    cache = ("--cache", str(base / "cache"))
    code, _, err = train(base, base / "runs", *cache, "--steps", "2")
    assert code == 0, err
    for name in ("cache", "vae"):
        shutil.copytree(base / name, base / f"moved-{name}")
    moved = ("--cache", str(base / "moved-cache"), "--vae", str(base / "moved-vae"))
    code, out, err = train(base, base / "runs", *moved, "--figures.batches", "1")
    assert code == 0 and "continuing after step 2" in out, err
    return base / "runs" / "images" / "shortcut"


def test_a_run_on_a_cache_stops_continues_and_draws_pictures(trained):
    assert [line["step"] for line in read_lines(trained / "metrics.jsonl")] == [1, 2, 3, 4]
    assert not (trained / "evaluation.json").exists()
    with PIL.Image.open(trained / "samples" / "step_0000004.png") as picture:
        assert picture.size[1] == 7 * (64 + 4)
    with PIL.Image.open(trained / "denoising" / "step_0000004.png") as picture:
        assert picture.size[1] == 8 * (64 + 4)
    assert "validation/loss" in read_lines(trained / "metrics.jsonl")[-1]


def test_a_run_of_before_its_autoencoder_was_part_of_its_data_continues(trained, base, tmp_path):
    shutil.copytree(trained, tmp_path / "images" / "shortcut")
    path = tmp_path / "images" / "shortcut" / "config.json"
    record = json.loads(path.read_text())
    data = {name: record["data"].pop(name) for name in ("kind", "classes", "images", "vae", "cache", "encode_batch")}
    assert not record["data"]
    latents = {name: data[name] for name in ("vae", "cache", "encode_batch")}
    path.write_text(json.dumps(record | {"data": data["images"]} | latents))
    code, out, err = train(base, tmp_path, "--cache", str(base / "cache"), "--steps", "5")
    assert code == 0 and "continuing after step 4" in out, err
    assert "data.images.held_out is 0.3, there it is 0.02" in refusal(train(base, tmp_path, "--data.held-out", "0.3"))


def test_samples_of_latents_are_decoded(trained, base, tmp_path):
    out = tmp_path / "grid.png"
    line = [str(trained), "--steps", "1", "--count", "4", "--columns", "4", "--out", str(out)]
    assert in_process("sample", line)[0] == 0
    with PIL.Image.open(out) as picture:
        assert picture.size == (8 + 7 * len("1 step") + 4 * (64 + 4), 64 + 4) and picture.mode == "RGB"
    assert "is not the autoencoder of" in refusal(in_process("sample", [*line, "--vae", str(base / "other")]))


def test_a_run_whose_autoencoder_is_gone_says_where_it_was(trained, base, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    record = settings.read(tmp_path / "run" / "config.json")
    record["data"]["vae"] = str(tmp_path / "gone")
    (tmp_path / "run" / "config.json").write_text(json.dumps(record))
    said = refusal(in_process("sample", [str(tmp_path / "run"), "--out", str(tmp_path / "grid.png")]))
    assert f"no autoencoder is at {tmp_path / 'gone'}: name its place with --vae" in said


def test_a_cache_is_filled_first_and_then_needs_no_images(base, tmp_path):
    cache = ("--cache", str(tmp_path / "cache"))
    code, _, err = train(base, tmp_path / "one", *cache)
    assert code == 0 and (tmp_path / "cache" / MANIFEST).exists(), err
    before = snapshot(tmp_path / "cache")
    code, _, err = train(base, tmp_path / "two", *cache, images=False)
    assert code == 0 and snapshot(tmp_path / "cache") == before, err
    one, two = ((tmp_path / n / "images" / "shortcut" / "metrics.jsonl").read_bytes() for n in ("one", "two"))
    assert one == two


def test_a_run_without_a_cache_encodes_in_every_step(base, tmp_path):
    code, _, err = train(base, tmp_path, "--steps", "2")
    assert code == 0, err
    assert [line["step"] for line in read_lines(tmp_path / "images" / "shortcut" / "metrics.jsonl")] == [1, 2]


REFUSED = {
    "no data": (["--vae", "VAE"], False, "neither images nor latents are named"),
    "no weights": (["--vae", "nowhere"], True, "no autoencoder in nowhere"),
    "no cache": (["--cache", "nowhere"], False, "holds no finished cache of latents"),
    "foreign autoencoder": (["--cache", "CACHE", "--vae", "OTHER"], False, "holds other latents: autoencoder.sha256 is"),
    "foreign images": (["--cache", "CACHE", "--data.held-out", "0.5"], True, "source.held_out is 0.5, there it is 0.02"),
    "parts that do not fit": (
        ["--batch", "24", "--encode-batch", "16"],
        True,
        "--batch 24 is not a multiple of --encode-batch 16",
    ),
    "a size that does not fit": (["--data.size", "9"], True, "an image of 9 x 9 is not divisible by 2"),
    "judged beside nothing": (
        ["--cache", "CACHE", "--quality.steps", "1"],
        False,
        "come without images to judge",
    ),
    "judged beside one image": (
        ["--vae", "VAE", "--quality.steps", "1"],
        True,
        "1 held-out image, and samples are",
    ),
    "overfit nothing": (["--overfit", "0"], True, "--overfit 0: use 1 or more"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_missing_or_contradicts_is_one_sentence_before_a_run_is_made(case, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args, images, words = REFUSED[case]
    places = {"VAE": base / "vae", "OTHER": base / "other", "CACHE": base / "cache"}
    result = train(base, tmp_path / "runs", *(str(places.get(arg, arg)) for arg in args), images=images)
    assert words in refusal(result), result[2]
    assert list(tmp_path.iterdir()) == []


def test_a_plan_is_refused_as_the_run_is(base, tmp_path):
    """Images of a size of which an autoencoder that is there makes no latent, and one that is damaged."""
    with pytest.raises(ValueError, match="an image of 9 x 9 is not divisible by 2"):
        LatentImages(dataclasses.replace(source(base), size=9), base / "vae").blank()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is no config of diffusers"):
        LatentImages(source(base), tmp_path).blank()
    rows, seen = plan.example(LatentImages(source(base), tmp_path / "nowhere"))
    assert rows.shape == (1, 1, 4) and "so latents as expected" in seen


def test_a_tampered_cache_is_one_sentence(base, tmp_path):
    shutil.copytree(base / "cache", tmp_path / "cache")
    manifest = json.loads((tmp_path / "cache" / MANIFEST).read_text())
    (tmp_path / "cache" / MANIFEST).write_text(json.dumps(manifest | {"moments": [2, 2, 4, 4, 7]}))
    said = refusal(train(base, tmp_path, "--cache", str(tmp_path / "cache"), images=False))
    assert "by the manifest it is float16" in said and "repeat the command that made the cache" in said


def test_a_run_on_few_examples_sees_those_alone():
    data = open_data(dataclasses.replace(DIGITS, overfit=2), sharding.make_mesh())
    assert len(data.train.labels) == len(data.rows.labels) == 2 and len(data.held_out.labels) == 397


@pytest.mark.slow
def test_a_network_learns_few_examples_by_heart(tmp_path):
    """Samples lie beside the two digits trained on, where other digits are far away."""
    line = ["objective:flow-matching", *"--overfit 2 --steps 200 --batch 16 --network.hidden 48 --network.depth 1".split()]
    rate = "--optimizer.lr 5e-3 --optimizer.warmup 10 --objective.label-dropout 0 --quality.count 16 --quality.steps 8".split()
    code, _, err = in_process("digits", [*line, *rate, "--runs", str(tmp_path)])
    assert code == 0, err
    quality = json.loads((tmp_path / "digits" / "flow-matching" / "evaluation.json").read_text())
    (row,), (floor,) = quality["results"], quality["floors"].values()
    assert row["protocol"]["training images"] == 2
    assert row["measures"]["accuracy"] == 1
    assert row["measures"]["nearest"] < 0.25 * floor["nearest"]


PLANNED = Config(
    data=LatentImages(classes=10),
    network=DiTConfig(hidden=64, depth=3, heads=4, precision="float32"),
    objective=FlowMatching(),
    optimizer=AdamW(),
    batch=16,
)


def test_a_plan_counts_every_block_forward_and_backward():
    """Products of each block at width h: 12 h^2 a token and 2 n^2 h of attention; backward is twice forward.

    The backward pass computes the logits of attention again.
    """
    rows, _ = plan.example(PLANNED.data)
    mesh = sharding.make_mesh()
    state = plan.laid_out(plan.abstract_state(PLANNED, rows), mesh)
    traced = plan.trace(Run("", PLANNED, Data(rows, rows, True), mesh), state)
    n, h = 256, 64
    blocks = 3 * (12 * h**2 * n + 2 * n**2 * h + 6 * h**2)
    ends = 2 * n * 16 * h + 2 * (256 * h + h * h) + 2 * h**2
    forward = 2 * 16 * (blocks + ends)
    logits = 2 * 16 * 3 * n**2 * h
    assert 2.9 * forward < flops.flops(traced.jaxpr) - logits < 3.02 * forward


def test_a_plan_knows_the_published_size():
    config = dataclasses.replace(PLANNED, network=preset("B/2"), objective=Shortcut())
    rows, seen = plan.example(script("imagenet").DATA)
    state = plan.abstract_state(config, rows)
    assert plan.parameter_count(state) == 131_091_728 and "expected" in seen


@pytest.mark.parametrize("script", [pytest.param("imagenet", marks=pytest.mark.slow), "digits"])
def test_a_dry_run_prints_the_plan_and_writes_nothing(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    size = ["--dry-run", *"--network.hidden 16 --network.depth 1 --network.heads 2 --batch 64".split()]
    code, out, err = in_process(script, size)
    assert code == 0, err
    said = ("parameters", "tokens", "batch a device     64 (64 over 1 x cpu)", "state a device     weights 0.00")
    assert all(name in out for name in (*said, "GFLOP", "GiB"))
    assert list(tmp_path.iterdir()) == []


def test_a_plan_sees_the_images_and_the_cache(base):
    images = LatentImages(source(base), base / "vae", classes=1000)
    for data, words in ((images, "photos.npz"), (LatentImages(cache=base / "cache", classes=1000), "latents in")):
        rows, seen = plan.example(data)
        assert rows.shape == (4, 4, 2) and rows.classes == 3 and words in seen


def test_encoding_reports_what_it_did(base, tmp_path):
    counts = encode(source(base), load_autoencoder(base / "vae"), tmp_path / "cache", batch=8, shard=100)
    assert counts["train"] + counts["held_out"] == COUNT and counts["replaced"] == 0


@pytest.mark.slow
def test_bad_images_that_were_replaced_are_counted_and_listed(base, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(COUNT):
        PIL.Image.fromarray(np.full((8, 8, 3), 10 * i, np.uint8)).save(photos / f"{i:02d}.png")
    for i in (3, 4):
        PIL.Image.new("CMYK", (8, 8)).save(photos / f"{i:02d}.png", format="TIFF")
    chosen = ["--data.path", str(photos), "--data.size", "8", "--data.on-bad-image", "replace", "--vae", str(base / "vae")]
    there = ["--cache", str(tmp_path / "cache"), "--runs", str(tmp_path)]
    line = ["tiny", "data:image-folder", *merged([*TINY, *chosen, *there])]
    assert in_process("images", line)[0] == 0
    parts = settings.read(tmp_path / "cache" / MANIFEST)["parts"]
    listed = [sentence for part in parts.values() for sentence in part["replaced"].values()]
    assert len(listed) == 2 and all(f"{i:02d}.png" in "".join(listed) for i in (3, 4))

    code, out, _ = in_process(
        "images", ["tiny", "data:image-folder", *merged([*TINY, *chosen, "--runs", str(tmp_path / "each")])]
    )
    assert code == 0 and "bad images replaced by the next good ones: 2" in out
    assert sorted(settings.read(tmp_path / "each" / "images" / "shortcut" / "replaced.json").values()) == sorted(listed)


@pytest.mark.parametrize("script", ["celeba", "imagenet", "lsun", "images", "encode"])
def test_help_lists_the_settings(script):
    code, out, _ = in_process(script, ["--help"])
    assert code == 0 and "--vae" in out and "parquet" in out


@pytest.mark.parametrize("cached", [False, True])
def test_latents_are_judged_as_the_pictures_they_decode_to(base, tmp_path, cached):
    """Pixels and features of the samples, drawn as `sample` draws them, beside the images of the run and not their latents."""
    classifier = tmp_path / "features.safetensors"
    save_classifier(classifier, SmallClassifier(3, key=jax.random.key(0)), {})
    line = f"--data.held-out 0.3 --quality.steps 2 --quality.count 8 --quality.features {classifier}".split()
    code, _, err = train(base, tmp_path, *line, *(["--cache", str(tmp_path / "cache")] if cached else []))
    assert code == 0, err
    folder = tmp_path / "images" / "shortcut"
    found, latents = results.read(folder), settings.parse(settings.read(folder / "config.json")["data"])
    (row,), (floor,) = found["results"], found["floors"].values()
    images, _ = latents.images.build()
    labels = np.resize(images.labels, 8)
    drawn = latents.pictures(eqx_shortcut.sample(eqx_shortcut.load(folder), jax.random.key(0), 8, 2, labels=labels))
    real = np.concatenate(list(scaled(images, np.arange(len(images.labels)))))
    expected = frechet_distance(*(moments([pixels(part)]) for part in (drawn, real)))
    assert row["measures"]["frechet"] == pytest.approx(expected, rel=1e-3)
    assert row["measures"]["classifier Frechet distance"] > 0 and floor.keys() == row["measures"].keys()


def test_photos_in_pixels_are_trained_drawn_and_judged_like_other_images(base, tmp_path):
    """The preset's size is kept by the other formats of photos; a distance is that of means over squares of 2 x 2."""
    given = ["--data.path", str(base / "photos.npz"), "--runs", str(tmp_path), "--network.patch", "16", "--steps", "2"]
    line = merged([*TINY, *given, "--quality.steps", "1", "--quality.count", "8"])
    at = line.index("--encode-batch")
    line = ["pixels", "data:arrays", *line[:at], *line[at + 2 :]]
    assert "1 held-out image, and samples are judged beside 2" in refusal(in_process("images", line))
    assert not (tmp_path / "images").exists()
    code, out, err = in_process("images", [*line, "--data.held-out", "0.2"])
    assert code == 0 and "frechet" in out, err
    folder = tmp_path / "images" / "shortcut"
    record, quality = settings.read(folder / "config.json"), json.loads((folder / "evaluation.json").read_text())
    assert record["shape"] == [64, 64, 3] and record["classes"] == 3
    (row,), (floor,) = quality["results"], quality["floors"].values()
    assert "pixels averaged over 2 x 2" in row["protocol"]["frechet"]
    assert row["measures"]["frechet"] > 0 and floor["frechet"] > 0
    with PIL.Image.open(folder / "samples" / "step_0000002.png") as picture:
        assert picture.size[1] == 7 * (64 + 4)
