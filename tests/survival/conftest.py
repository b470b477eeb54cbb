"""One zygote for all tests of this folder."""

from collections.abc import Iterator

import pytest

from survival.trainers import Zygote


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Forks training processes."""
    with Zygote() as made:
        yield made
