"""The first and last lines of every command's log: job, run and output, so that a job's log can be found again."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drgn_ray.errors import ConfigError
from drgn_ray.progress import format_duration

logger = logging.getLogger(__name__)


def submitted_job() -> str | None:
    """Find the id of the Ray job this process is the driver of; None outside of jobs."""
    job = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")  # how Ray tells a submitted driver who it is
    return None if job is None else json.loads(job).get("metadata", {}).get("job_submission_id")


def check_folder(output: str) -> None:
    """Refuse a folder of -o that cannot be made."""
    name = f"-o {output}"
    if "://" in output:
        raise ConfigError(name, "this is a URL", "pass the path of a folder")
    if not output:
        raise ConfigError("-o", "it is empty", "pass the name of a folder")
    if any(path.is_file() for path in (Path(output), *Path(output).parents)):
        raise ConfigError(name, "there is a file where a folder should be", "pass the name of a folder")


def check_place(name: str, output: Path) -> None:
    """Make the folder above an output, and refuse an output that cannot be written; `name` is what the user typed."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(name, f"it cannot be made ({error.strerror})", "pass another folder") from error
    if not os.access(output if output.is_dir() else output.parent, os.W_OK):
        raise ConfigError(name, "there is no permission to write here", "pass another folder")


class Frame:
    """What the last lines will say."""

    def __init__(self, output: str) -> None:
        self.head = [f"output  {output if '://' in output else os.path.abspath(output)}"]
        self.results: list[str] = []
        if job := submitted_job():
            self.head.insert(0, f"job     {job}")

    def link(self, url: str) -> None:
        """Print the run's link now and at the end."""
        self.head.append(f"run     {url}")
        logger.info(self.head[-1])

    def result(self, *lines: str) -> None:
        """Print these lines at the end."""
        self.results += lines


@contextmanager
def job_frame(output: str) -> Iterator[Frame]:
    """Print job and output, run the command, print them again with its results."""
    if submitted_job() and not (os.path.isabs(output) or "://" in output):
        raise ConfigError(
            output, "a job's working folder goes when the job ends", "pass an absolute path, which every machine sees"
        )
    frame = Frame(output)
    for line in frame.head:
        logger.info(line)
    start = time.monotonic()
    yield frame
    for line in (*frame.results, f"done in {format_duration(time.monotonic() - start)}", *frame.head):
        logger.info(line)
