"""One driver a folder: a job that is submitted twice would mix two trainings in one run, or two searches in a sweep."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drgn_ray.errors import RunError

logger = logging.getLogger(__name__)
_LOCK = ".lock"


@contextmanager
def locked(folder: Path, command: str) -> Iterator[None]:
    """Be the only driver in a folder, which is made; its death, of whatever kind, lets the next one in.

    Parameters
    ----------
    command
        What works in such folders; it is named to who comes second.

    Raises
    ------
    RunError
        Another is at work here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a") as file:  # never deleted: who waits for a deleted file waits for another
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            remedy = "wait until that has ended, or pass another -o"
            raise RunError(str(folder), f"another `drgn-ray {command}` is at work here", remedy) from error
        except OSError as error:  # some parallel file systems are mounted without
            logger.warning("%s: files cannot be locked here (%s); start no second %s in it", folder, error, command)
        yield


def is_empty(folder: Path) -> bool:
    """Whether a folder is not there, or holds nothing that anyone would miss."""
    return not folder.exists() or all(path.name == _LOCK for path in folder.iterdir())
