"""Commands run as several real processes that work together."""

import os
import socket
import subprocess
import sys

import quick
from scripts import program


def start(script: str, args: list[str], *before: tuple[str, ...], devices: int = 1) -> list[subprocess.Popen]:
    """The processes of one job, as many as `before`, which is what else Python is given before the script of each."""
    return [
        subprocess.Popen(
            [sys.executable, *options, *program(script), *args],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for options, environment in zip(before, environments(len(before), devices), strict=True)
    ]


def environments(count: int, devices: int = 1) -> list[dict[str, str]]:
    """What each of so many processes is told, of so many devices each; one alone is told of no others."""
    told = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {quick.FLAGS}"}
    if count == 1:
        return [told]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        told |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{free.getsockname()[1]}", "JAX_NUM_PROCESSES": str(count)}
    return [told | {"JAX_PROCESS_ID": str(number)} for number in range(count)]


def finish(job: list[subprocess.Popen], timeout: float = 300) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each process, once all have ended."""
    try:
        said = [process.communicate(timeout=timeout) for process in job]
    finally:
        for process in job:
            process.kill()
    return [(process.returncode, spoken(out), err) for process, (out, err) in zip(job, said, strict=True)]


def spoken(out: str) -> str:
    """What is printed, without what the library prints by which CPUs talk."""
    # Its threads write at once, so that a line may be cut in two.
    return "".join(line for line in out.splitlines(keepends=True) if "Gloo" not in line and "peer ranks" not in line)
