"""Coverage-guided fuzzing of the reader of cryoSPARC's tables; pytest does not collect it.

pip install atheris      (wheels for Linux; no dependency of drgn_ray)

python tests/fuzz/fuzz_csdat.py -runs=200000 -max_len=4096 corpus/

Crashes are written to the working directory; seeds are written to the corpus.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["conversions", "drgn_ray.errors", "numpy.lib._format_impl"]):
    from conversions import csdat, files

import numpy as np
from cryosparc.dataset import CSDAT_FORMAT, Dataset

from drgn_ray.errors import UserError

CONTENT = b""


def seeds() -> list[bytes]:
    table = np.zeros(5, [("uid", "<u8"), ("blob/path", "S9"), ("blob/shape", "<u4", (2,)), ("ctf/df1_A", "<f4")])
    table["uid"], table["blob/path"] = np.arange(5), b"some.mrcs"
    as_numpy, as_csdat = io.BytesIO(), io.BytesIO()
    np.save(as_numpy, table)
    Dataset(table).save(as_csdat, format=CSDAT_FORMAT)
    return [as_numpy.getvalue(), as_csdat.getvalue()]


def read_given(path: str, what: str = "") -> bytes:
    return CONTENT


def check_sentence(error: UserError) -> None:
    assert str(error).isprintable()


def test_one_input(data: bytes) -> None:
    global CONTENT
    CONTENT = data
    try:
        table = csdat.read_cs("fuzzed.cs")
        assert table.nbytes <= 255 * 4097 * len(data)
        csdat.to_arrow(table)
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
