"""Waiting for storage that fails: file systems of clusters are away for minutes, and disks fill up and are tidied."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
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
