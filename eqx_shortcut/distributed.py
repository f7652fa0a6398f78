"""Several processes as one: joined when they start, stopped together, and kept from waiting for one that failed."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from .errors import first_line


class ProcessError(ValueError):
    """Processes that cannot work together: says which, and what to do."""


def initialize(environment: Mapping[str, str] = os.environ) -> None:
    """Joins this process to those that were started with it; does nothing for one alone. Call it before JAX is used.

    They are found by JAX_COORDINATOR_ADDRESS (HOST:PORT of the first), JAX_NUM_PROCESSES and JAX_PROCESS_ID, or, where srun,
    mpirun (Open MPI) or a TPU pod started several, by what these set. There each process gets one of its host's GPUs, by
    JAX's own rule; JAX_LOCAL_DEVICE_IDS names others. Raises ProcessError if the others cannot be reached.
    """
    if jax.distributed.is_initialized():
        return
    try:
        if "JAX_COORDINATOR_ADDRESS" in environment:
            count, number = (_number(environment, name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
            # Otherwise JAX asks the clusters that it knows for what is not given, devices among it.
            jax.distributed.initialize(
                environment["JAX_COORDINATOR_ADDRESS"], count, number, cluster_detection_method="deactivate"
            )
        elif _started(environment) > 1:
            jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:
        if isinstance(error, ProcessError):
            raise
        raise ProcessError(
            f"this process could not join the others ({first_line(error)}): start all of them, with the same "
            "JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES and each with its own JAX_PROCESS_ID"
        ) from error


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not text.isdecimal():
        raise ProcessError(f"JAX_COORDINATOR_ADDRESS is set and {name} is {text!r}: set it to a number")
    return int(text)


def _started(environment: Mapping[str, str]) -> int:
    """How many processes a launcher started: 1 in a shell on a cluster, where its variables are set too."""
    if {"SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"} <= environment.keys():
        return int(environment.get("SLURM_NTASKS", 1))
    if "OMPI_MCA_orte_hnp_uri" in environment:
        return int(environment.get("OMPI_COMM_WORLD_SIZE", 1))
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES") or ""
    return len(hosts.split(","))


def is_main_process() -> bool:
    """Whether this is the process that writes the shared files and prints."""
    return jax.process_index() == 0


def broadcast(answer: bool) -> bool:
    """The answer of the first process, in all of them; each waits for the others and for its devices."""
    return answer if jax.process_count() == 1 else bool(multihost_utils.broadcast_one_to_all(np.asarray(answer)))


@contextlib.contextmanager
def signals() -> Iterator[Callable[[int], int | None]]:
    """A function of the number of the step that was done: the SIGINT or SIGTERM after which to stop there, once it came.

    Of several processes all stop after the same step, whichever was told to, by the synchronisation of JAX's preemption
    service: each has to ask after every step. A second signal has its usual effect.
    """
    received: list[int] = []
    several = jax.process_count() > 1
    # The preemption service has a handler of SIGTERM of its own.
    usual = {number: signal.getsignal(number) for number in ((signal.SIGINT,) if several else (signal.SIGINT, signal.SIGTERM))}

    def note(number: int, frame: object) -> None:
        signal.signal(number, usual[signal.Signals(number)])
        if several:
            signal.raise_signal(signal.SIGTERM)
        received.append(number)

    def asked(step: int) -> int | None:
        if several:
            return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None
        return received[0] if received else None

    for number in usual:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def barrier() -> Iterator[None]:
    """A barrier at the end of a block, which raises in every process if the block raised in one."""
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    if jax.process_count() > 1:
        failed = np.flatnonzero(multihost_utils.process_allgather(np.asarray(failure is not None)))
        if failure is None and failed.size:
            raise ProcessError(f"process {failed[0]} failed and says why: the same command goes on from what is written")
    if failure is not None:
        raise failure
