"""One device for the commands that are run in this process."""

from collections.abc import Iterator

import jax
import pytest

from eqx_shortcut import sharding


@pytest.fixture(scope="module", autouse=True)
def one_device(request: pytest.FixtureRequest) -> Iterator[None]:
    """Programs for one device compile several times faster than for eight; a module that needs all says EIGHT_DEVICES."""
    if getattr(request.module, "EIGHT_DEVICES", False):
        yield
        return
    mesh = sharding.make_mesh
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda **_: mesh(devices=jax.devices()[:1]))
        yield
