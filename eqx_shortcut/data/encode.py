"""From images to a cache of latents: what is missing is encoded, what is there is kept."""

import json
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import distributed, settings, sharding, storage
from ..pretrained.autoencoder import Autoencoder, fingerprint
from ..progress import bar
from . import DataError, Images
from .identity import Identity, changed, identity, summary
from .latents import MANIFEST, PARTS, Shard, check_finite, read_manifest, shard_rows
from .records import ImageRecords
from .sources import Photos

DRAFT = "settings.json"
UNSTORED = ("mirror", "index", "path")
"""Settings of a source that a cache does not record: the shape of its moments tells whether there are mirror images, and its
identity which images they are."""


def encode(
    source: Photos,
    autoencoder: Autoencoder,
    out: storage.Path,
    *,
    batch: int,
    shard: int,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, int]:
    """Writes the cache of a source's images and says how many there are in each part, and how many bad ones were replaced.

    Before anything is encoded `report` is called in one of the processes with a line on the images that were read.

    Raises ValueError if the folder holds another cache, DataError for images that cannot be read.
    """
    with distributed.barrier():
        images = dict(zip(PARTS, source.build(), strict=True))
        present = identity(images["train"], images["held_out"])
        record = record_of(source, autoencoder, images["train"], shard) | {"identity": present}
        if distributed.is_main_process():
            report(f"{out}: {summary(images['train'], images['held_out'])}")
        mesh = sharding.make_mesh(devices=jax.local_devices())
        sharding.check_batch(batch, mesh)
        if distributed.is_main_process():
            check_identity(out / DRAFT, present)
            settings.match_or_write(out / DRAFT, record, "another cache", "Repeat its settings, or name another folder")
    with distributed.barrier():
        missing = []
        for part, data in images.items():
            (out / part).mkdir(parents=True, exist_ok=True)
            numbered = list(enumerate(shard_rows(len(data.labels), shard)))[jax.process_index() :: jax.process_count()]
            parts = [(Shard(out / part, index), data, rows) for index, rows in numbered]
            missing += [part for part in parts if not part[0].checksum_file.exists()]
        total = sum(len(rows) for _, _, rows in missing)
        with bar(total=total, desc="encoding", unit="image", quiet=not distributed.is_main_process()) as shown:
            for file, data, rows in missing:
                moments, labels = encode_shard(autoencoder, data, rows, batch, mesh, shown.update, mirror=source.mirror)
                bad = data.bad if isinstance(data, ImageRecords) else {}
                storage.write(file.replaced, json.dumps({i: bad[i] for i in sorted(bad) if i in rows}, indent=1))
                file.write(moments, labels)
    counts = {part: len(data.labels) for part, data in images.items()}
    with distributed.barrier():
        if distributed.is_main_process():
            finish(out, record, counts, shard)
    return {**counts, "replaced": sum(len(part["replaced"]) for part in read_manifest(out)["parts"].values())}


def record_of(source: Photos, autoencoder: Autoencoder, images: Images | ImageRecords, shard: int) -> dict[str, Any]:
    """The settings that decide the bytes of a cache."""
    height, width, channels = autoencoder.latent_shape(images.shape)
    posterior = eqx.filter_eval_shape(autoencoder.encode, jax.ShapeDtypeStruct(images.shape, jnp.float32))
    return {
        "format": 1,
        "moments": [2 if source.mirror else 1, 1 if posterior.log_variance is None else 2, height, width, channels],
        "dtype": "float16",
        "shard": shard,
        "classes": images.classes,
        "image": list(images.shape),
        "autoencoder": autoencoder_record(autoencoder),
        "source": stored_source(source),
        "preprocessing": "central square, antialiased resize, pixels / 127.5 - 1",
    }


def autoencoder_record(autoencoder: Autoencoder) -> dict[str, Any]:
    """Class, weights and scale of an autoencoder: equal for equal ones, wherever their files lie."""
    return {
        "class": type(autoencoder).__name__,
        "sha256": fingerprint(autoencoder),
        "scale": autoencoder.scale,
        "shift": autoencoder.shift,
    }


def check_identity(path: storage.Path, found: Identity) -> None:
    """Raises DataError if a cache, by the settings or the manifest at `path`, is of images that mean something else."""
    recorded = settings.read(path).get("identity") if storage.exists(path) else None
    if recorded and (what := changed(recorded, found)):
        raise DataError(
            f"{path.parent} holds latents of other images: {what}. Name the images it was made of, or another folder"
        )


def stored_source(source: Photos) -> dict[str, Any]:
    """The settings of a source on which the latents depend."""
    return {key: value for key, value in settings.dump(source).items() if key not in UNSTORED}


def check_cache(cache: storage.Path, source: Photos | None, autoencoder: Autoencoder) -> None:
    """Raises ValueError, naming what differs, if a finished cache is of other images or of another autoencoder."""
    manifest = read_manifest(cache)
    stored, given = {"autoencoder": manifest.get("autoencoder")}, {"autoencoder": autoencoder_record(autoencoder)}
    if source is not None:
        stored["source"] = {key: value for key, value in manifest.get("source", {}).items() if key not in UNSTORED}
        given["source"] = stored_source(source)
    different = settings.differences(stored, given)
    if different:
        raise ValueError(
            f"{cache} holds other latents: {settings.named(different)}. Name what they were made from, or another folder with "
            "--cache"
        )
    if source is not None and source.path.exists() and "identity" in manifest:
        check_identity(cache / MANIFEST, identity(*source.build()))


def encode_shard(
    autoencoder: Autoencoder,
    data: Images | ImageRecords,
    rows: range,
    batch: int,
    mesh: jax.sharding.Mesh,
    each: Callable[[int], Any],
    *,
    mirror: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Moments of the images `rows` and, if `mirror`, of their mirror images, and their labels.

    `each` is told the number of images after each batch.
    """
    moments, labels = [], []
    for start in range(rows.start, rows.stop, batch):
        numbers = np.arange(start, min(start + batch, rows.stop))
        images = data.rows(numbers)
        images = data.note(images) if isinstance(data, ImageRecords) else images
        filled = np.pad(images["pixels"], [(0, batch - len(numbers)), (0, 0), (0, 0), (0, 0)])
        pixels = jax.device_put(filled, sharding.batch_sharding(mesh))
        moments.append(np.asarray(_moments(autoencoder, pixels, data.peak, mirror=mirror))[: len(numbers)])
        check_finite(moments[-1], lambda row, first=start: data.where(first + row))
        labels.append(images["labels"])
        each(len(numbers))
    return np.concatenate(moments), np.concatenate(labels)


@eqx.filter_jit
def _moments(autoencoder, pixels, peak, *, mirror):
    def of(image):
        posterior = autoencoder.encode(image)
        return jnp.stack([posterior.mean] if posterior.log_variance is None else [posterior.mean, posterior.log_variance])

    x = pixels.astype(jnp.float32) / (peak / 2) - 1
    # Half precision is what is stored; there is no need to send more to the host.
    sides = [jax.vmap(of)(x), *([jax.vmap(of)(x[:, :, ::-1])] if mirror else [])]
    return jnp.stack(sides, axis=1).astype(jnp.float16)


def finish(out: storage.Path, record: dict[str, Any], counts: dict[str, int], shard: int) -> None:
    """Writes the manifest, with which a cache is whole."""
    parts = {}
    for part, count in counts.items():
        files = [Shard(out / part, i) for i in range(len(shard_rows(count, shard)))]
        replaced = {index: why for file in files for index, why in settings.read(file.replaced).items()}
        parts[part] = {
            "count": count,
            "shards": [storage.read_text(file.checksum_file) for file in files],
            "replaced": replaced,
        }
    storage.write(out / MANIFEST, json.dumps({**record, "parts": parts}, indent=1))
