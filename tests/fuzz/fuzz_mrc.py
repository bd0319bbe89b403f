"""Coverage-guided fuzzing of the reader of MRC stacks; pytest does not collect it.

pip install atheris      (wheels for Linux; no dependency of drgn_ray)

python tests/fuzz/fuzz_mrc.py -runs=200000 -max_len=4096 corpus/

Crashes are written to the working directory; seeds are written to the corpus.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["conversions", "drgn_ray.errors", "mrcfile"]):
    from conversions import mrcs

import mrcfile
import numpy as np

from drgn_ray.errors import UserError

STACK = os.path.join(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None), "fuzzed.mrcs")


def seeds() -> list[bytes]:
    contents = []
    for kind in (np.int8, np.int16, np.float32, np.uint16, np.float16, np.complex64):
        for order in "<>":
            with mrcfile.new(STACK, overwrite=True) as file:
                file.set_data(np.ones((3, 4, 4), np.dtype(kind).newbyteorder(order)))
                file.set_image_stack()
            contents.append(Path(STACK).read_bytes())
    imod = bytearray(contents[0])
    imod[152:160] = mrcs.IMOD_STAMP.to_bytes(4, "little") + bytes(4)
    contents.append(bytes(imod))
    return contents


def check_sentence(error: UserError) -> None:
    assert str(error).isprintable()


def test_one_input(data: bytes) -> None:
    Path(STACK).write_bytes(data)
    try:
        header = mrcs.read_header(STACK)
        rows = np.arange(header.num_images)
        images = mrcs.read_images([header], np.zeros_like(rows), rows)
        assert images.nbytes <= 4 * len(data)
    except UserError as error:
        check_sentence(error)


def main() -> None:
    folders = [Path(word) for word in sys.argv[1:] if not word.startswith("-")]
    for folder in folders[:1]:
        folder.mkdir(exist_ok=True)
        for number, seed in enumerate(seeds()):
            (folder / f"seed{number}").write_bytes(seed)
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
