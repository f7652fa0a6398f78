"""Eight fake devices, strict promotion of dtypes and ranks, quick compilation, and compiled programs kept between runs."""

import importlib.util
import os
import pathlib
import signal
from collections.abc import Iterator

import quick

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # by a shell that began the tests in the background; commands inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {quick.FLAGS}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
ROOT = pathlib.Path(__file__).parents[1]
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax  # noqa: E402
import pytest  # noqa: E402

from eqx_shortcut import sharding  # noqa: E402
from object_store import Objects, serve  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=pathlib.Path,
        default=ROOT / "tests" / "golden",
        help="folder of recorded values of the original code (see tests/test_golden.py)",
    )


@pytest.fixture(scope="session")
def store() -> Iterator[Objects]:
    """The objects behind gs://, on this machine: one stand-in for all tests, since its clients keep its address."""
    if importlib.util.find_spec("gcsfs") is None:  # not imported yet: it reads its environment when it is
        pytest.skip("pip install 'eqx_shortcut[gcs]'")
    with serve() as (objects, environment), pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield objects


MAPPINGS = 30_000


@pytest.fixture(scope="module", autouse=True)
def few_mappings() -> Iterator[None]:
    """Lets go of compiled programs before there are too many: each takes several mappings, of which Linux gives a process
    65,530, and XLA dies where it gets none."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MAPPINGS:
        jax.clear_caches()


@pytest.fixture(scope="module")
def one_device() -> Iterator[None]:
    """From here to the module's end runs use one device, for which programs compile several times faster than for eight."""
    mesh = sharding.make_mesh
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda **_: mesh(devices=jax.devices()[:1]))
        yield


@pytest.fixture
def key() -> jax.Array:
    """A key; split it for each use."""
    return jax.random.key(0)


@pytest.fixture
def x64():
    """Double precision, for laws that hold to rounding."""
    with jax.enable_x64(True):
        yield
