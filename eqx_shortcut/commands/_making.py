"""A run folder made of weights, and not by training."""

import json
import pathlib
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .. import __version__, rng, settings, storage
from ..objectives import Networks, Objective
from ..optimizer import AdamW

if TYPE_CHECKING:
    from ..models import DiT
    from ..models.in_context import InContext
    from ..train import TrainState


def described(network: "DiT | InContext", arrays: Mapping[str, Any]) -> str:
    """The size of a network in words, with the number of parameters that were read for it."""
    config, count = network.config, sum(value.size for value in arrays.values())
    size = f"width {config.hidden}, depth {config.depth}, heads {config.heads}, patch {config.patch}"
    return f"{count:,} parameters ({size}; {network.classes} classes)"


def fresh_state(network: "DiT | InContext", objective: Objective, optimizer: AdamW, *, step: int, seed: int) -> "TrainState":
    """The state of a network whose weights alone are known: they are the online weights and their average."""
    from ..train import TrainState

    key, zero = rng.key(seed), jnp.zeros((), jnp.int32)
    extra, memory = objective.extra(jax.random.fold_in(key, 2)), objective.memory(network.shape)
    networks = Networks(network, network, extra=extra, memory=memory)
    opt_state = optimizer.build(1).init(eqx.filter(networks.trained, eqx.is_inexact_array))
    return TrainState(jnp.asarray(step, jnp.int32), key, networks, opt_state, zero, zero)


def check_free(run: pathlib.Path) -> None:
    """Raises ValueError if there is something in the place of the new run."""
    if storage.exists(run):
        raise ValueError(f"{run} exists already: name another run folder, or remove that one")


def make_run(
    run: pathlib.Path,
    state: "TrainState",
    objective: Objective,
    optimizer: AdamW,
    *,
    vae: pathlib.Path | None = None,
    known: Mapping[str, Any] = types.MappingProxyType({}),
) -> None:
    """Writes a run folder of one checkpoint, whose settings are only those that are known, `known` being further ones."""
    from ..checkpoint import Checkpoints
    from ..data.encode import autoencoder_record
    from ..data.latent_images import LatentImages
    from ..pretrained.autoencoder_files import load_autoencoder

    network = state.networks.online
    record: dict[str, Any] = {
        "experiment": storage.absolute(run).parent.name,
        "version": __version__,
        "shape": list(network.shape),
        "classes": network.classes,
        **settings.dump({"network": network.config, "objective": objective, "optimizer": optimizer}),
        **known,
    }
    if vae is not None:
        record["autoencoder"] = autoencoder_record(load_autoencoder(vae))
        record["data"] = settings.dump(LatentImages(vae=vae.absolute(), classes=network.classes))
    checkpoints = Checkpoints(run / "checkpoints", config=record)
    checkpoints.save(state, {}, wait=True)
    checkpoints.close()
    # Last, so that a folder that cannot be used does not look like a run.
    storage.write(run / "config.json", json.dumps(record, indent=1))
