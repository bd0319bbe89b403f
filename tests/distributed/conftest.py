"""One Ray of our own for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from servers import own_ray


@pytest.fixture(scope="module")  # and not the session, in whose other tests commands start their own
def ray_here() -> Iterator[None]:
    """Ray with four logical CPUs."""
    with own_ray(4):
        yield
