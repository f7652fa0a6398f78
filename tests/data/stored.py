"""The same pictures written in every format, by other code than reads them where there is any."""

import io
import json
import pathlib
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet
from array_record.python.array_record_module import ArrayRecordWriter
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from eqx_shortcut.data.formats.tfrecord import crc32c
from eqx_shortcut.data.sources import TFDS, Arrays, ImageFolder, Parquet, Photos

Labels = Sequence[int] | np.ndarray
Writer = Callable[[pathlib.Path, Sequence[bytes], Labels], Photos]

SIZE, NAMES = 16, ("bird", "cat", "dog")
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 29, 3), np.uint8)
LABELS = np.repeat(np.arange(3, dtype=np.int32), 4)


def encode(pixels: np.ndarray, format: str = "png", mode: str | None = None, **options: Any) -> bytes:
    """An image file."""
    image = PIL.Image.fromarray(pixels)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, format=format, **options)
    return file.getvalue()


PNGS = tuple(encode(pixels) for pixels in PIXELS)


def png_of_16_bits() -> bytes:
    """An RGB PNG that Pillow reads and cannot write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + bytes(range(24)) for _ in range(4)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


BAD = {
    "truncated JPEG": (encode(PIXELS[0], "jpeg")[:-200], "image file is truncated"),
    "truncated PNG": (PNGS[0][:-200], "image file is truncated"),
    "CMYK": (encode(PIXELS[0], "jpeg", "CMYK"), "colours of mode CMYK, where 8-bit grey"),
    "grey of 16 bits": (encode(PIXELS[0, ..., 0].astype(np.uint16) << 8), "16 bits a channel, where 8-bit grey"),
    "RGB of 16 bits": (png_of_16_bits(), "16 bits a channel, where 8-bit grey"),
    "text": (b"no picture", "no image file, or of a format that is not read"),
}
"""Images that cannot be used, each with the reason."""


def _example_class() -> Any:
    """tf.train.Example, from its published definition."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")
    kinds = {"bytes": 12, "float": 2, "int64": 3, "string": 9}

    def message(name: str, **fields: tuple[int, str, bool]) -> None:
        made = file.message_type.add(name=name)
        for field, (number, kind, repeated) in fields.items():
            known = {"type": kinds[kind]} if kind in kinds else {"type": 11, "type_name": f".t.{kind}"}
            made.field.add(name=field, number=number, label=3 if repeated else 1, **known)

    for kind in ("bytes", "float", "int64"):
        message(f"{kind}_list", value=(1, kind, True))
    message("Feature", **{kind: (n, f"{kind}_list", False) for n, kind in enumerate(("bytes", "float", "int64"), 1)})
    message("Entry", key=(1, "string", False), value=(2, "Feature", False))  # a map is written as repeated entries
    message("Features", feature=(1, "Entry", True))
    message("Example", features=(1, "Features", False))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


_Example = _example_class()


def example(**features: Any) -> bytes:
    """A serialized tf.train.Example; lists of bytes, whole numbers or floats."""
    made = _Example()
    for key, values in features.items():
        entry = made.features.feature.add(key=key)
        kind = {bytes: "bytes", int: "int64", float: "float"}[type(values[0])]
        getattr(entry.value, kind).value.extend(values)
    return made.SerializeToString()


def examples(images: Sequence[bytes], labels: Labels) -> list[bytes]:
    """What TensorFlow Datasets writes of labelled images."""
    pairs = zip(images, labels, strict=True)
    return [example(file_name=[b"a.jpg"], image=[image], label=[int(label)]) for image, label in pairs]


def write_tfrecord(path: pathlib.Path, records: Sequence[bytes]) -> None:
    """A TFRecord file."""

    def masked(data: bytes) -> bytes:
        crc = crc32c(data)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    lengths = [struct.pack("<Q", len(record)) for record in records]
    path.write_bytes(b"".join(n + masked(n) + record + masked(record) for n, record in zip(lengths, records, strict=True)))


def write_array_record(path: pathlib.Path, records: Sequence[bytes]) -> None:
    """An ArrayRecord file as TensorFlow Datasets writes it."""
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def write_tfds(folder: pathlib.Path, kind: str, records: Sequence[bytes], *, split: str = "train", files: int = 2) -> None:
    """A prepared data set, without the files that tell of it."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, part in enumerate(np.array_split(np.arange(len(records)), files)):
        path = folder / f"pets-{split}.{kind}-{i:05d}-of-{files:05d}"
        (write_tfrecord if kind == "tfrecord" else write_array_record)(path, [records[j] for j in part.tolist()])


def tell_features(folder: pathlib.Path, image: str = "image", label: str = "label") -> None:
    """features.json and the names of the classes."""
    module = "tensorflow_datasets.core.features"
    told = {
        "file_name": {"pythonClassName": f"{module}.text_feature.Text"},
        image: {"pythonClassName": f"{module}.image_feature.Image"},
        label: {"pythonClassName": f"{module}.class_label_feature.ClassLabel", "classLabel": {"numClasses": "3"}},
    }
    (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": told}}))
    (folder / f"{label}.labels.txt").write_text("".join(f"{name}\n" for name in NAMES))


def as_folder(folder: pathlib.Path, images: Sequence[bytes], labels: Labels) -> Photos:
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / NAMES[label] / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(image)
    return ImageFolder(path=folder, size=SIZE)


def as_flat_folder(folder: pathlib.Path, images: Sequence[bytes], labels: Labels) -> Photos:
    for i, image in enumerate(images):
        (folder / f"{i:02d}.PNG").write_bytes(image)
    return ImageFolder(path=folder, size=SIZE)


def as_parquet(files: int) -> Writer:
    def write(folder: pathlib.Path, images: Sequence[bytes], labels: Labels) -> Photos:
        cells = [{"bytes": image, "path": None} for image in images]
        for i, part in enumerate(np.array_split(np.arange(len(images)), files)):
            table = pa.table({"image": [cells[j] for j in part.tolist()], "label": [int(labels[j]) for j in part.tolist()]})
            pyarrow.parquet.write_table(table, folder / f"train-{i:05d}-of-{files:05d}.parquet", row_group_size=3)
        return Parquet(path=folder, size=SIZE)

    return write


def as_tfds(kind: str) -> Writer:
    def write(folder: pathlib.Path, images: Sequence[bytes], labels: Labels) -> Photos:
        write_tfds(folder / "pets" / "1.0.0", kind, examples(images, labels))
        tell_features(folder / "pets" / "1.0.0")
        return TFDS(path=folder / "pets" / "1.0.0", size=SIZE, index=folder / "index")

    return write


def as_npy(folder: pathlib.Path, images: Sequence[bytes], labels: Labels) -> Photos:
    np.save(folder / "pets.npy", PIXELS)
    np.save(folder / "pets_labels.npy", labels)
    return Arrays(path=folder / "pets.npy", size=SIZE)


def as_npz(folder: pathlib.Path, images: Sequence[bytes], labels: Labels) -> Photos:
    np.savez_compressed(folder / "train.npz", images=PIXELS, labels=labels)
    return Arrays(path=folder, size=SIZE)


ENCODED = {
    "folder": as_folder,
    "flat folder": as_flat_folder,
    "parquet": as_parquet(1),
    "3 parquet": as_parquet(3),
    "array_record": as_tfds("array_record"),
    "tfrecord": as_tfds("tfrecord"),
}
"""Formats that hold image files."""
FORMATS = {**ENCODED, "npy": as_npy, "npz": as_npz}
