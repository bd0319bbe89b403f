"""Local paths and fsspec URLs (``s3://``, ``gs://``, ...) read alike."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import fsspec

from drgn_ray.errors import ConfigError, ParticleFileError
from drgn_ray.text import KEYS_ELSEWHERE, refuse_secrets

T = TypeVar("T")
R = TypeVar("R")
THREADS = 32  # requests at a time, for file systems that answer slowly


def is_url(path: str) -> bool:
    """Whether this is a URL, not a local path."""
    return "://" in path


def absolute(path: str) -> str:
    """Make a path that holds whatever the working directory; URLs stay as they are."""
    return path if is_url(path) else os.path.abspath(path)


def folder_of(path: str) -> str:
    """Name the folder of a file."""
    return absolute(path).rpartition("/")[0]


def parents(folder: str) -> list[str]:
    """List a folder and all folders above it, nearest first."""
    if is_url(folder):
        scheme, _, rest = folder.partition("://")
        parts = rest.rstrip("/").split("/")
        return [f"{scheme}://{'/'.join(parts[:count])}" for count in range(len(parts), 0, -1)]
    found = [os.path.abspath(folder)]
    while os.path.dirname(found[-1]) != found[-1]:
        found.append(os.path.dirname(found[-1]))
    return found


def join(folder: str, name: str) -> str:
    """Put a relative name below a folder; absolute names and URLs stay as they are."""
    if is_url(name) or os.path.isabs(name):
        return name
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else os.path.join(folder, name)


def is_below(path: str, folder: str) -> bool:
    """Whether a path is, as it is written, in a folder or that folder; where links lead is their owner's choice."""
    (ours, rest), (theirs, above) = (_scheme_and_path(each) for each in (path, folder))
    return ours == theirs and "::" not in path and (above in ("/", rest) or rest.startswith(f"{above}/"))


def _scheme_and_path(path: str) -> tuple[str, str]:
    scheme, separator, rest = path.rpartition("://")
    return scheme, posixpath.normpath(rest if separator else os.path.abspath(path))


def filesystem(path: str) -> tuple[Any, str]:
    """Find the file system of a path, and what the path is called there."""
    refuse_secrets(path, KEYS_ELSEWHERE)
    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            path, f"no file system for this address ({error})", "install it (for s3://: pip install 'drgn-ray[s3]')"
        ) from error


def is_file(path: str) -> bool:
    """Whether this file exists."""
    files, name = filesystem(path)
    with _answering(path):
        return files.isfile(name)


def is_folder(path: str) -> bool:
    """Whether this folder exists."""
    files, name = filesystem(path)
    with _answering(path):
        return files.isdir(name)


@contextmanager
def _answering(path: str) -> Iterator[None]:
    """Say which storage does not answer; its clients have errors of their own for that, such as missing credentials."""
    try:
        yield
    except Exception as error:
        if not is_url(path):
            raise
        found = f"its storage does not answer ({' '.join(str(error).split())})"
        raise ParticleFileError(path, found, "check the address and your credentials for it") from error


def read(path: str, what: str = "file") -> bytes:
    """Read a whole file, or say which one is not there."""
    check_file(path, what)
    files, name = filesystem(path)
    try:
        return files.cat_file(name)
    except OSError as error:
        raise ParticleFileError(path, f"cannot be read ({error.strerror or error})", "check its permissions") from error


def check_file(path: str, what: str = "file") -> None:
    """Refuse a path that is not a file."""
    if is_folder(path):
        raise ParticleFileError(path, f"this is a folder, not a {what}", f"pass the {what} itself")
    if not is_file(path):
        raise ParticleFileError(path, f"there is no such {what}", "check the path")


def read_ranges(ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
    """Read byte ranges (path, start, end), all of one file system; remote ones are asked for at the same time."""
    if not ranges:
        return []
    files, _ = filesystem(ranges[0][0])
    names = [fsspec.core.strip_protocol(path) for path, _, _ in ranges]
    starts, ends = [start for _, start, _ in ranges], [end for _, _, end in ranges]
    try:
        return files.cat_ranges(names, starts, ends, on_error="raise")
    except OSError as error:
        path = error.filename or ranges[0][0]
        raise ParticleFileError(path, f"cannot be read ({error.strerror or error})", "check its permissions") from error


def describe(path: str, *, checksum: bool = False) -> dict[str, Any]:
    """Tell path, size and time of change of a file, and on request its SHA-256."""
    files, name = filesystem(path)
    info = files.info(name)
    modified = info.get("mtime") or info.get("LastModified") or info.get("ETag") or ""
    modified = modified if isinstance(modified, int | float) else str(modified)
    described = {"path": path, "bytes": info["size"], "modified": modified}
    if checksum:
        with files.open(name, "rb") as file:
            described["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return described


def at_the_same_time(function: Callable[[T], R], values: Iterable[T]) -> list[R]:
    """Call a function that waits for files, with many values at a time; results are in order."""
    values = list(values)
    if len(values) <= 1:
        return [function(value) for value in values]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, values))
