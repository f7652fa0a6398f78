"""Published diffusion transformers from their files: torch, safetensors, diffusers, Orbax; nothing of a file is run."""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import PRNGKeyArray
from safetensors.numpy import save_file

from .. import storage
from ..errors import first_line
from ..models.dit import DiT
from ..models.in_context import InContext
from . import improved_mean_flow
from .tensors import read_safetensors
from .torchfile import is_torch, read_tensors
from .transformers import CONVENTIONS, POSITIONS, Kind, from_diffusers, from_flax, from_tensors, to_diffusers, with_positions
from .unpickle import UnpickleError

SIDE = 32
"""Of the latents of images of 256 x 256."""
Copy = Literal["ema", "online"]
COPIES: dict[Copy, tuple[str, ...]] = {"ema": ("ema", "model_ema", "ema_model"), "online": ("model", "state_dict", "module")}
"""What checkpoints of training call the average of the weights, and the last ones."""
WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")
"""What torch puts before names of a network that is spread over devices, or compiled."""
CONFIG, CLASS = "config.json", "DiTTransformer2DModel"
TREES: dict[Copy, str] = {"ema": "ema_params", "online": "params"}
"""What the JAX authors' states call them."""
ORBAX = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
WHOLE = "gather the weights and save them whole, in one file"


Family = Kind | Literal["imf"]


class Published(NamedTuple):
    """Tensors under SiT's names (see transformers.Tensors), what their file tells of the network, and what was taken of it.

    Those of improved MeanFlow have its own names.
    """

    tensors: dict[str, np.ndarray]
    kind: Family | None = None
    heads: int | None = None
    size: int | None = None
    note: str = ""


def read_published(path: str | pathlib.Path, copy: Copy = "ema") -> Published:
    """The tensors of a file or folder; where it holds both copies of the weights, `copy`.

    Raises ValueError naming the file and what is wrong with it: parts of a network, another class, what is no plain tensor.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        # An interrupted save leaves a folder whose name goes on after the number.
        numbers = {step.name.removeprefix("checkpoint_"): step for step in path.glob("checkpoint_*")}
        steps = [numbers[number] for number in sorted(filter(str.isdecimal, numbers), key=int)]
        orbax = next((folder for folder in (path, *steps[-1:]) if any((folder / name).exists() for name in ORBAX)), None)
        return _read_diffusers(path) if orbax is None else _read_orbax(orbax, copy)
    if path.name.endswith(".index.json"):
        raise ValueError(f"{path} lists the parts of a network that is cut into several files: {WHOLE}")
    if not path.is_file():
        raise ValueError(f"no file {path}: check the path")
    tensors, note = _read(path, copy)
    told: list[Kind] = [kind for kind, known in CONVENTIONS.items() if f"{known.branch}.mlp.0.weight" in tensors]
    return Published(tensors, kind=told[0] if told else None, note=note)


def write_torch(path: pathlib.Path, network: DiT, kind: Kind) -> None:
    """Writes the network (see transformers.exported) for SiT's or DiT's code; .safetensors, or else what torch.save writes.

    Raises ValueError if that needs torch, which is not there.
    """
    tensors = with_positions(network, kind)
    with storage.draft_of(path) as draft:
        if path.suffix == ".safetensors":
            save_file(tensors, draft)
        else:
            try:
                import torch  # pyright: ignore[reportMissingImports]
            except ImportError as error:
                raise ValueError(
                    f"{path} is a file of torch, which is not installed: let its name end in .safetensors"
                ) from error
            torch.save({name: torch.from_numpy(value.copy()) for name, value in tensors.items()}, draft)


def write_diffusers(folder: pathlib.Path, network: DiT, kind: Kind) -> None:
    """Writes the folder of diffusers' DiTTransformer2DModel. Raises ValueError if there is something in its place."""
    if folder.exists():
        raise ValueError(f"{folder} exists already: name another folder")
    config = network.config
    if config.mlp_width != 4 * config.hidden:
        raise ValueError(f"mlp_ratio={config.mlp_ratio}, and diffusers knows 4 alone: write it with --to torch")
    settings = {
        "_class_name": CLASS,
        "num_attention_heads": config.heads,
        "attention_head_dim": config.hidden // config.heads,
        "in_channels": network.shape[-1],
        "num_layers": config.depth,
        "sample_size": network.shape[0],
        "patch_size": config.patch,
        "num_embeds_ada_norm": network.classes,
    }
    folder.mkdir(parents=True)
    save_file(to_diffusers(with_positions(network, kind)), folder / WEIGHTS[0])
    (folder / CONFIG).write_text(json.dumps(settings, indent=1))


def kind_of(published: Published, said: Family | None) -> Family:
    """The kind that was `said`, or that the file tells. Raises ValueError if neither does or they differ."""
    if said is None and published.kind is None:
        raise ValueError("SiT and DiT have the same names of tensors: say which one it is with --from sit or --from dit")
    alike = ("sit", "dit", None)
    if said is not None and said != published.kind and not (said in alike and published.kind in alike):
        raise ValueError(f"--from {said}, and the names of its tensors are of {published.kind or 'sit or dit'}: say that")
    kind = said or published.kind
    assert kind is not None
    return kind


def network_of(
    published: Published, kind: Family, *, key: PRNGKeyArray, size: int | None = None, heads: int | None = None
) -> DiT | InContext:
    """The network of a file of that kind, of images of side `size` (by default 32 where the file does not tell it).

    Raises ValueError as transformers.from_tensors.
    """
    size, heads = size or published.size, heads or published.heads
    size = size or (None if POSITIONS in published.tensors else SIDE)
    if kind == "imf":
        return improved_mean_flow.from_parameters(published.tensors, size=size or SIDE, heads=heads, key=key)
    return from_tensors(published.tensors, kind, key=key, size=size, heads=heads)


def _read(path: pathlib.Path, copy: Copy) -> tuple[dict[str, np.ndarray], str]:
    notes: list[str] = []

    def choose(content: Mapping[str, Any]) -> Any:
        found = {which: name for which, names in COPIES.items() for name in names if isinstance(content.get(name), dict)}
        if not found:
            return content
        if copy not in found:
            raise UnpickleError(
                f"it holds {', '.join(found.values())} and no {copy} weights: use --weights {next(iter(found))}"
            )
        others = [name for which, name in found.items() if which != copy]
        notes.append(f"took {found[copy]}" + (f", not {others[0]}" if others else ""))
        return content[found[copy]]

    try:
        tensors = read_tensors(path, choose) if is_torch(path) else read_safetensors(path)[0]
    except ValueError as error:
        if "torch.distributed" in str(error):
            raise ValueError(f"{path} holds tensors that are spread over devices (DTensor): {WHOLE}") from error
        raise
    return {WRAPPERS.sub("", name): value for name, value in tensors.items()}, "".join(notes)


def _read_orbax(folder: pathlib.Path, copy: Copy) -> Published:
    import jax
    import orbax.checkpoint as ocp

    name, folder = TREES[copy], folder.absolute()
    try:
        # Of the whole state, of which moments are the half, one copy of the weights is read.
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            item = {name: {"net": reader.metadata(folder).item_metadata.tree[name]["net"]}}
            plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
            wanted = ocp.args.PyTreeRestore(item, restore_args=plain, partial_restore=True)
            found = reader.restore(folder, args=wanted)[name]["net"]
    except Exception as error:  # its errors have no common base
        raise ValueError(
            f"{folder} cannot be read as a state of MeanFlow, whose {name} hold a net ({first_line(error, 200)})"
        ) from error
    named = {
        jax.tree_util.keystr(path, simple=True, separator="/"): v for path, v in jax.tree_util.tree_leaves_with_path(found)
    }
    note = f"took {name} of {folder.name}"
    if improved_mean_flow.MARK in named:
        return Published(named, "imf", note=note)
    return Published(from_flax(named), "meanflow", note=note)


def _read_diffusers(folder: pathlib.Path) -> Published:
    # A whole pipeline keeps its network in a folder of its own.
    folder = folder / "transformer" if (folder / "transformer" / CONFIG).is_file() else folder
    try:
        config = json.loads((folder / CONFIG).read_bytes())
        kind, heads, size = config["_class_name"], int(config["num_attention_heads"]), int(config["sample_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        told = f"{folder} holds no {CONFIG} of diffusers' {CLASS} ({type(error).__name__}: {error})"
        raise ValueError(f"{told}: name the folder of one, or of its pipeline, or a file of weights") from error
    if kind != CLASS:
        raise ValueError(f"{folder / CONFIG} describes {kind!r}, and {CLASS} alone is known")
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        parts = any(folder.glob("*.index.json"))
        raise ValueError(
            f"{folder} holds {'parts of a network' if parts else f'neither {WEIGHTS[0]} nor {WEIGHTS[1]}'}: {WHOLE}"
        )
    tensors, note = _read(file, "ema")
    return Published(from_diffusers(tensors), "dit", heads, size, note)
