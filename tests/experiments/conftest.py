"""One device for the commands that are run in this process."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def one_device_unless_all(request: pytest.FixtureRequest) -> None:
    """One device, unless the module needs all and says EIGHT_DEVICES."""
    if not getattr(request.module, "EIGHT_DEVICES", False):
        request.getfixturevalue("one_device")
