"""The first and last lines of every command's log: job, run and output, so that a job's log can be found again."""

from __future__ import annotations

import json
import logging
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from drgn_ray.errors import ConfigError
from drgn_ray.progress import format_duration

logger = logging.getLogger(__name__)


def submitted_job() -> str | None:
    """Find the id of the Ray job this process is the driver of; None outside of jobs."""
    job = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")  # how Ray tells a submitted driver who it is
    return None if job is None else json.loads(job).get("metadata", {}).get("job_submission_id")


def next_command(command: str, store: str, output: str) -> str:
    """Write a command on a store as it is typed here: in a job, as another job, whose output all machines see."""
    if submitted_job():
        folder = Path(store).parent if "://" not in store else Path("/FOLDER")
        output = str(folder / output)
    return command_line(command, store, "-o", output)


def command_line(command: str, *words: str) -> str:
    """Write a command as it is typed here: in a job, as another job."""
    if submitted_job():
        return f"ray job submit --working-dir . -- {shlex.join(['python', '-m', f'jobs.{command}', *words])}"
    return shlex.join(["drgn-ray", command, *words])


def check_folder(output: str) -> None:
    """Refuse a folder of -o that cannot be made."""
    name = f"-o {output}"
    if "://" in output:
        raise ConfigError(name, "this is a URL", "pass the path of a folder")
    if not output:
        raise ConfigError("-o", "it is empty", "pass the name of a folder")
    if any(os.path.isfile(path) for path in (output, *Path(output).parents)):
        raise ConfigError(name, "there is a file where a folder should be", "pass the name of a folder")


def output_path(output: str, there: Sequence[Path], *, overwrite: bool) -> Path:
    """Where -o is for all processes; refused if files are `there` that stay, or where nothing can be written."""
    name, path = f"-o {output}", Path(os.path.abspath(output))  # workers are elsewhere
    if there and not overwrite:
        raise ConfigError(str(there[0]), "it is already here", "pass another -o, or --overwrite to replace it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(name, f"it cannot be made ({error.strerror})", "pass another folder") from error
    if not os.access(path if path.is_dir() else path.parent, os.W_OK):
        raise ConfigError(name, "there is no permission to write here", "pass another folder")
    return path


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
    if not output:
        raise ConfigError("-o", "its path is empty", "pass that of what is to be written")
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
