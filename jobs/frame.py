"""The first and last lines of every command's log: job, run and output, so that a job's log can be found again."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from drgn_ray.progress import format_duration

logger = logging.getLogger(__name__)


class Frame:
    """What the last lines will say."""

    def __init__(self, output: str) -> None:
        self.head = [f"output  {os.path.abspath(output) if '://' not in output else output}"]
        self.results: list[str] = []
        if job := os.environ.get("RAY_JOB_SUBMISSION_ID"):
            self.head.insert(0, f"job     {job}")

    def link(self, url: str) -> None:
        """Print the run's link now and at the end."""
        self.head.append(f"run     {url}")
        logger.info(self.head[-1])

    def result(self, *lines: str) -> None:
        """Lines to print at the end."""
        self.results += lines


@contextmanager
def job_frame(output: str) -> Iterator[Frame]:
    """Print job and output, run the command, print them again with its results."""
    frame = Frame(output)
    for line in frame.head:
        logger.info(line)
    start = time.monotonic()
    yield frame
    for line in (*frame.results, f"done in {format_duration(time.monotonic() - start)}", *frame.head):
        logger.info(line)
