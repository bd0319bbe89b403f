"""Coverage-guided fuzzing of the readers of cryoDRGN's pickles; pytest does not collect it.

pip install atheris      (wheels for Linux; no dependency of drgn_ray)

python tests/fuzz/fuzz_pickle.py -runs=200000 -max_len=4096 corpus/

What is found is written to the working directory as ``crash-...``, ``oom-...`` or ``timeout-...``; the folder of the
corpus is made by hand, and keeps inputs that reached new lines.  With an empty one the seeds below are written to it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["conversions", "drgn_ray.errors", "pickle"]):
    import pickle

    from conversions import cryodrgn, files

import numpy as np

from drgn_ray.errors import UserError

COUNT = 3
CONTENT = b""


def seeds() -> list[bytes]:
    rotations, shifts = np.tile(np.eye(3), (COUNT, 1, 1)), np.zeros((COUNT, 2))
    ctf = np.tile([16.0, 2.0, 1e4, 1e4, 0.0, 300.0, 2.7, 0.1, 0.0], (COUNT, 1))
    contents = [
        (rotations, shifts),
        rotations,
        ctf,
        ctf.T.copy().T,
        np.arange(2),
        [0, 2],
        np.array([True, False, True]),
    ]
    return [pickle.dumps(content, protocol) for content in contents for protocol in range(6)]


def read_given(path: str, what: str = "") -> bytes:
    return CONTENT


def check_sentence(error: UserError) -> None:
    assert str(error).isprintable()


def test_one_input(data: bytes) -> None:
    global CONTENT
    CONTENT = data
    for read in (cryodrgn.read_poses, cryodrgn.read_ctf, cryodrgn.read_selection):
        try:
            read("fuzzed.pkl", COUNT)
        except UserError as error:
            check_sentence(error)


def main() -> None:
    files.read = read_given
    folders = [Path(word) for word in sys.argv[1:] if not word.startswith("-")]
    for folder in folders[:1]:
        folder.mkdir(exist_ok=True)
        for number, seed in enumerate(seeds()):
            (folder / f"seed{number}").write_bytes(seed)
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
