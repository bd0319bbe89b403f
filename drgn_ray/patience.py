"""Reading and writing with storage that fails: file systems are away for minutes, disks fill up and are tidied."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from drgn_ray.errors import StorageError

logger = logging.getLogger(__name__)
T = TypeVar("T")
PATIENCE_SECONDS = 240.0  # whoever waits for a block of particles waits a little longer
RETRY_SECONDS, SAID_SECONDS = 1.0, 30.0


def patiently(path: object, attempt: Callable[[], T]) -> T:
    """Read or write, again and again while the storage of a path fails.

    Raises
    ------
    StorageError
        It failed for `PATIENCE_SECONDS`.
    """
    start, said = time.monotonic(), -SAID_SECONDS
    while True:
        try:
            return attempt()
        except OSError as error:
            waited, reason = time.monotonic() - start, " ".join(str(error).split())
            if waited >= PATIENCE_SECONDS:
                found = f"its storage failed for {waited:.0f} s ({reason})"
                raise StorageError(str(path), found, "mend that, and give the same command again") from error
            if waited - said >= SAID_SECONDS:
                said = waited
                logger.warning("%s: waiting for its storage (%s)", path, reason)
        time.sleep(RETRY_SECONDS)


def write_whole(file: Path, text: str) -> None:
    """Write a file that is there whole or not at all, in folders that are made; storage that fails is waited for."""
    partial = file.with_name(f".{file.name}.partial")

    def attempt() -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)

    patiently(file, attempt)


def append_line(descriptor: int, line: str) -> None:
    """Append a line to a file that is open for appending, or raise and leave it as it was."""
    content, size = f"{line}\n".encode(), os.fstat(descriptor).st_size
    try:
        if os.write(descriptor, content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        os.ftruncate(descriptor, size)
        raise
