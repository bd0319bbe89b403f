"""Look at something again and again, beside what this process does."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


@contextmanager
def watching(look: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call `look` in a thread of its own every so many seconds, and once more after the end."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(seconds):
            try:
                look()
            except OSError as error:  # of storage that is away for a moment
                logger.warning("%s", error)
        look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
