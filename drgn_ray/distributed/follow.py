"""Bring the lines of a log file that another machine writes to this process's log."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drgn_ray.distributed.cluster import resource_picture

logger = logging.getLogger(__name__)
SILENCE_SECONDS = 120.0


@contextmanager
def following(file: Path, poll_seconds: float = 0.5) -> Iterator[None]:
    """Log every line that is appended to `file`; say what is free in the cluster when nothing comes for long."""
    stop = threading.Event()
    thread = threading.Thread(target=_follow, args=(file, stop, poll_seconds), daemon=True)
    file.touch()
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _follow(file: Path, stop: threading.Event, poll_seconds: float) -> None:
    last = time.monotonic()
    with file.open() as lines:
        lines.seek(0, 2)
        while True:
            ending = stop.is_set()  # one more read after the end
            for line in lines:
                logger.info(line.rstrip("\n"))
                last = time.monotonic()
            if ending:
                return
            if time.monotonic() - last > SILENCE_SECONDS:
                last = time.monotonic()
                logger.warning("nothing from the workers for %.0f s; %s", SILENCE_SECONDS, resource_picture())
            stop.wait(poll_seconds)
