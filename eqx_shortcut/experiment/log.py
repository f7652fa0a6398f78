"""Where metrics go: lines of JSON always, TensorBoard and Weights & Biases when asked."""

import io
import json
import os
from collections.abc import Mapping
from typing import Any

from .. import storage

Values = dict[str, float]


class Logger:
    """Takes the metrics of one step, and pictures by the PNG files that hold them; this one drops them."""

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Takes numbers, or lists of them, by name."""

    def write_image(self, step: int, name: str, path: storage.Path) -> None:
        """Takes a picture; nothing where the picture's own file is its record."""

    def flush(self) -> None:
        """Keeps what came before, whatever happens."""

    def close(self) -> None:
        """Finishes."""


class JsonLines(Logger):
    """One line `{"step": ..., "loss": ...}` a record. Opened for a run at step `start`, drops the lines after it.

    The lines hold nothing that depends on the clock, so that a continued run writes the same file as an undisturbed one.
    An object store appends nothing: there the file is written anew at each `flush`. What cannot be written (OSError) is
    written with what follows, so that no line is lost where a disk is full for a while.
    """

    def __init__(self, path: storage.Path, *, start: int):
        kept = "".join(json.dumps(line) + "\n" for line in read_lines(path) if line["step"] <= start)
        storage.write(path, kept)
        self._path, self._left = path, b""
        # Without a buffer of its own, which drops what it cannot write.
        self._file: io.BytesIO | io.FileIO = (
            io.BytesIO(kept.encode()) if storage.is_remote(path) else io.FileIO(path, "a")  # pyright: ignore[reportArgumentType]
        )
        self._file.seek(0, io.SEEK_END)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        self._left += (json.dumps({"step": step, **values}) + "\n").encode()
        self._write_left()

    def flush(self) -> None:
        self._write_left()
        if isinstance(self._file, io.BytesIO):
            storage.write(self._path, self._file.getvalue())
        else:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        try:
            self.flush()
        finally:
            self._file.close()

    def _write_left(self) -> None:
        while self._left:
            self._left = self._left[self._file.write(self._left) :]


def read_lines(path: storage.Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines; a last line cut short by a crash is left out. Empty if there is no file."""
    if not path.exists():
        return []
    records = []
    for line in storage.read_text(path).splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


class TensorBoard(Logger):
    """Scalars and pictures for TensorBoard, in the folder `tensorboard` of the run. Needs the extra `tensorboard`."""

    def __init__(self, folder: storage.Path, *, start: int):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ValueError("--tensorboard needs the extra: pip install 'eqx_shortcut[tensorboard]'") from error
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def write_image(self, step: int, name: str, path: storage.Path) -> None:
        import numpy as np
        import PIL.Image

        with path.open("rb") as file, PIL.Image.open(file) as picture:
            self._writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandB(Logger):
    """Metrics and pictures for Weights & Biases; the run's id is kept in `wandb.json`, so that a continued run goes on there.

    Offline if `offline`, or by the environment variable WANDB_MODE. Needs the extra `wandb`.
    """

    def __init__(self, folder: storage.Path, *, project: str, name: str, offline: bool, config: dict[str, Any]):
        try:
            import wandb  # pyright: ignore[reportMissingImports]  # an extra
        except ImportError as error:
            raise ValueError("--wandb needs the extra: pip install 'eqx_shortcut[wandb]'") from error
        record = folder / "wandb.json"
        identity = json.loads(record.read_text())["id"] if record.exists() else wandb.util.generate_id()
        storage.write(record, json.dumps({"id": identity}))
        self._image = wandb.Image
        self._run = wandb.init(
            project=project,
            name=name,
            id=identity,
            resume="allow",
            dir=None if storage.is_remote(folder) else str(folder),  # None: the working folder
            config=config,
            mode="offline" if offline else None,
        )

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log(values, step=step)

    def write_image(self, step: int, name: str, path: storage.Path) -> None:
        import PIL.Image

        with path.open("rb") as file, PIL.Image.open(file) as picture:
            self._run.log({name: self._image(picture)}, step=step)

    def close(self) -> None:
        self._run.finish()
