"""What MLflow has not been told yet: kept in the run directory while its server is away, and delivered in order.

Nothing waits for a server: one that was away a moment ago is asked again after `RETRY_SECONDS`, whenever there is
something new to tell, and what is left is told by the next command on the run.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from mlflow.protos.databricks_pb2 import (
    INTERNAL_ERROR,
    REQUEST_LIMIT_EXCEEDED,
    TEMPORARILY_UNAVAILABLE,
    ErrorCode,
)
from requests.exceptions import RequestException

from drgn_ray.patience import append_line, patiently, write_whole

logger = logging.getLogger(__name__)
RETRY_SECONDS = 15.0
_AWAY = {ErrorCode.Name(code) for code in (INTERNAL_ERROR, REQUEST_LIMIT_EXCEEDED, TEMPORARILY_UNAVAILABLE)}
Message = Mapping[str, Any]


class Outbox:
    """Delivers messages (anything that JSON holds), in the order in which they come.

    Parameters
    ----------
    folder
        Holds what waits, while anything does; several processes may share it.
    deliver
        Tells MLflow a message.
    """

    def __init__(self, folder: Path, deliver: Callable[[Message], None]) -> None:
        self.folder, self.deliver = folder, deliver
        self.file = folder / "waiting.jsonl"
        self.not_before = 0.0  # monotonic seconds

    def put(self, message: Message) -> None:
        """Tell MLflow a message, after those that wait; what it refuses is said, and forgotten."""
        if not self.file.exists() and self._told(message):
            return
        patiently(self.folder, lambda: self._keep(message))
        self.flush()

    def _keep(self, message: Message) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked() as file:
            append_line(file.fileno(), json.dumps(message))

    def flush(self, *, now: bool = False) -> int:
        """Deliver what waits, if the server answers; return how many messages still wait.

        Parameters
        ----------
        now
            Also where the server did not answer a moment ago.
        """
        if not self.file.exists():
            return 0
        with self._locked() as file:
            file.seek(0)
            waiting = [line for line in file.read().splitlines() if line]
            if not now and time.monotonic() < self.not_before:
                return len(waiting)
            told = 0
            while told < len(waiting) and self._line_told(waiting[told]):
                told += 1
            left = waiting[told:]
            if told:
                logger.info("MLflow answers again: %d messages delivered, %d wait", told, len(left))
                write_whole(self.file, "".join(f"{line}\n" for line in left))
            if not left:
                self.file.unlink()
        return len(left)

    def _line_told(self, line: str) -> bool:
        try:
            message = json.loads(line)
        except ValueError:  # half of it, where power failed
            logger.warning("%s: a message is damaged and cannot be told", self.file)
            return True
        return self._told(message)

    def _told(self, message: Message) -> bool:
        """Tell a message; False where the server is away."""
        try:
            self.deliver(message)
        except Exception as error:  # noqa: BLE001 - stores of artifacts raise what their own libraries have
            said = " ".join(str(error).split())[:200]
            if _is_away(error):
                if not self.file.exists():
                    logger.warning("MLflow does not answer (%s); %s keeps what it should know", said, self.folder)
                self.not_before = time.monotonic() + RETRY_SECONDS
                return False
            logger.warning("MLflow: %s failed (%s); going on without", message["what"], said)
        return True

    @contextmanager
    def _locked(self) -> Iterator[TextIO]:
        """Open the file that waits, appending, with no other process in it."""
        while True:
            with open(self.file, "a+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if _is_named(file, self.file):  # and was not delivered and removed in between
                    yield file
                    return


def _is_named(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _is_away(error: Exception) -> bool:
    """Whether a server does not answer, rather than refuse what it is told."""
    return isinstance(error, RequestException) or getattr(error, "error_code", None) in _AWAY
