"""Bring the lines of a log file that another machine writes to this process's log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ray.exceptions import RayError

from drgn_ray.distributed.watch import watching

logger = logging.getLogger(__name__)
SILENCE_SECONDS = 60.0


@contextmanager
def following(file: Path, picture: Callable[[], str], poll_seconds: float = 0.5) -> Iterator[None]:
    """Log every line that is appended to `file`; when nothing comes for long, say what `picture` says."""
    file.touch()
    with file.open() as lines:
        lines.seek(0, 2)
        last = time.monotonic()

        def look() -> None:
            nonlocal last
            for line in lines:
                logger.info(line.rstrip("\n"))
                last = time.monotonic()
            if time.monotonic() - last > SILENCE_SECONDS:
                last = time.monotonic()
                with suppress(RayError):  # the head may be away, which others say
                    logger.warning("nothing from the workers for %.0f s; %s", SILENCE_SECONDS, picture())

        with watching(look, poll_seconds):
            yield
