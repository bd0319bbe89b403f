"""Valid files with changes anywhere: every reader returns, or says in a `UserError` what is wrong, and nothing else.

``DRGN_RAY_FUZZ_EXAMPLES=20000 pytest tests/conversions/test_fuzzed_readers.py`` is the long form.
"""

from __future__ import annotations

import io
import os
import pickle
import resource
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from cryosparc.dataset import CSDAT_FORMAT, Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from star_sets import random_set, small_table

from conversions import mrcs
from conversions.inputs import read_particles
from drgn_ray.errors import UserError

EXAMPLES = int(os.environ.get("DRGN_RAY_FUZZ_EXAMPLES", "60"))
LARGEST_BYTES = 256 << 20  # of memory, for files of a few kilobytes
SECONDS = 60  # after which a reader is taken to hang
COUNT = 12


def numpy_file(values: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()


def csdat_file(values: np.ndarray) -> bytes:
    content = io.BytesIO()
    Dataset(values).save(content, format=CSDAT_FORMAT)
    return content.getvalue()


POSES = np.tile(np.eye(3, dtype=np.float32), (COUNT, 1, 1)), np.zeros((COUNT, 2), np.float32)
CTF = np.tile(np.float32([16, 2, 1e4, 1e4, 0, 300, 2.7, 0.1, 0]), (COUNT, 1))
ROWS = [np.arange(3), [0, 2, 5], np.arange(COUNT) % 2 == 0]
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)

Call = Callable[[Path], object]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A STAR file of 12 images and its stack."""
    few = random_set(tmp_path_factory.mktemp("fuzzed"), count=COUNT)
    few.write()
    return few.folder


def read_stack(folder: Path) -> object:
    header = mrcs.read_header(str(folder / "fuzzed.mrcs"))
    rows = np.arange(header.num_images)
    return mrcs.read_images([header], np.zeros_like(rows), rows)


def star_with(flag: str, name: str) -> Call:
    return lambda folder: read_particles(str(folder / "particles.star"), **{flag: str(folder / name)})


READERS: dict[str, tuple[str, Callable[[Path], list[bytes]], Call]] = {
    "STAR": (
        "fuzzed.star",
        lambda folder: [(folder / "particles.star").read_bytes()],
        lambda folder: read_particles(str(folder / "fuzzed.star")),
    ),
    "stack": ("fuzzed.mrcs", lambda folder: [(folder / "stack.mrcs").read_bytes()], read_stack),
    "cs": (
        "fuzzed.cs",
        lambda folder: [numpy_file(small_table())],
        lambda folder: read_particles(str(folder / "fuzzed.cs")),
    ),
    "CSDAT": (
        "fuzzed.cs",
        lambda folder: [csdat_file(small_table())],
        lambda folder: read_particles(str(folder / "fuzzed.cs")),
    ),
    "poses": (
        "fuzzed.pkl",
        lambda folder: [pickle.dumps(POSES, protocol) for protocol in PROTOCOLS],
        star_with("poses", "fuzzed.pkl"),
    ),
    "CTF": (
        "fuzzed.pkl",
        lambda folder: [pickle.dumps(CTF, protocol) for protocol in PROTOCOLS],
        star_with("ctf", "fuzzed.pkl"),
    ),
    "rows in a pickle": (
        "fuzzed.pkl",
        lambda folder: [pickle.dumps(rows, protocol) for rows in ROWS for protocol in PROTOCOLS],
        star_with("ind", "fuzzed.pkl"),
    ),
    "rows in an array": (
        "fuzzed.npy",
        lambda folder: [numpy_file(np.asarray(rows)) for rows in ROWS],
        star_with("ind", "fuzzed.npy"),
    ),
    "rows in a text": ("fuzzed.txt", lambda folder: [b"0\n3\n5\n", b"1,2,3"], star_with("ind", "fuzzed.txt")),
    "list of stacks": (
        "fuzzed.txt",
        lambda folder: [b"stack.mrcs\n\nstack.mrcs\n"],
        lambda folder: read_particles(str(folder / "fuzzed.txt"), no_ctf=True, apix=2.0),
    ),
}
INTERESTING = [
    b"\0",
    b"\xff",
    b"\xff" * 4,
    b"\xff\xff\xff\x7f",
    b"\0\0\0\x80",
    b"-1",
    b"nan",
    b"1e999",
    b"'",
    b'"',
    b"#",
]
INTERESTING += [
    b"\n",
    b"\r",
    b"\t",
    b"data_",
    b"loop_",
    b"_rln",
    b"@",
    b"/",
    b"://",
    b"{",
    b"[",
    b"O",
    b"|O",
    b"\x94",
    b".",
]


@st.composite
def mutated(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """A valid file with one to four changes: bytes set, put in, taken out, doubled; or its end cut off."""
    content = draw(st.sampled_from(originals))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(start + draw(st.sampled_from([1, 1, 2, 4, 8, 64, 10_000])), len(content))
        new = draw(st.one_of(st.sampled_from(INTERESTING), st.binary(min_size=1, max_size=8)))
        content = draw(
            st.sampled_from(
                [
                    content[:start] + new + content[start + len(new) :],
                    content[:start] + new + content[start:],
                    content[:start] + content[end:],
                    content[:end] + content[start:],
                ]
            )
        )
    return content


def stop_waiting(*_: object) -> None:
    raise AssertionError(f"the reader was not done after {SECONDS} s")


@pytest.fixture(autouse=True)
def memory_stays_small() -> Iterator[None]:
    """However large the sizes that a file says it has."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < LARGEST_BYTES


@pytest.mark.parametrize("kind", READERS)
def test_a_reader_returns_or_refuses(kind: str, folder: Path) -> None:
    name, originals, read = READERS[kind]
    valid = originals(folder)
    for content in valid:
        (folder / name).write_bytes(content)
        try:
            read(folder)
        except UserError as error:
            assert "poses" in str(error)  # noqa: PT017 (of a list of stacks, which has none, all else was read)

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(mutated(valid))
    def check(content: bytes) -> None:
        (folder / name).write_bytes(content)
        signal.signal(signal.SIGALRM, stop_waiting)
        signal.alarm(SECONDS)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                read(folder)
        except UserError as error:
            sentence = str(error)
            assert sentence.isprintable()
            assert len(sentence) < 2000
        finally:
            signal.alarm(0)

    check()
