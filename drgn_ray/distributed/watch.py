"""Look at something again and again, beside what this process does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def watching(look: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call `look` in a thread of its own every so many seconds, and once more after the end."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(seconds):
            look()
        look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
