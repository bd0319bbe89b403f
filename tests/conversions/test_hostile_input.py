"""Input that is damaged, hostile or merely odd: converted as it was meant, or refused in one sentence."""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryosparc.dataset import CSDAT_FORMAT, Dataset
from star_sets import Refused, StarSet, random_set, small_table, write_stack

from conversions import csdat
from conversions.cryodrgn import read_pickle
from drgn_ray.errors import StoreError
from drgn_ray.particles.store import ParticleStore
from jobs.cli import main

COUNT = 20
ROTATIONS, SHIFTS = np.tile(np.eye(3), (COUNT, 1, 1)), np.zeros((COUNT, 2))
CTF = np.tile([16.0, 2.0, 1e4, 1e4, 0.0, 300.0, 2.7, 0.1, 0.0], (COUNT, 1))


def convert(source: object, output: Path, *words: str) -> ParticleStore:
    assert main(["convert", str(source), "-o", str(output), "--workers", "0", *words]) == 0
    return ParticleStore(output)


def assert_same(left: ParticleStore, right: ParticleStore) -> None:
    for name, values in left.columns.items():
        np.testing.assert_array_equal(values, right.columns[name], err_msg=name)
    np.testing.assert_array_equal(left.read_images(slice(0, len(left))), right.read_images(slice(0, len(right))))
    assert left.table().to_pydict() == right.table().to_pydict()


def in_lines(change: Callable[[list[str]], list[str]]) -> Callable[[str], str]:
    return lambda text: "\n".join(change(text.split("\n")))


def first_row(lines: list[str]) -> int:
    return next(number for number, line in enumerate(lines) if "@" in line)


def with_row(number: int, change: Callable[[list[str]], list[str]]) -> Callable[[str], str]:
    """Change the words of a row of the particles."""

    def changed(lines: list[str]) -> list[str]:
        place = first_row(lines) + number
        return [*lines[:place], " ".join(change(lines[place].split())), *lines[place + 1 :]]

    return in_lines(changed)


def insert(number: int, *new: str) -> Callable[[str], str]:
    """Put lines before a row of the particles."""

    def changed(lines: list[str]) -> list[str]:
        place = first_row(lines) + number
        return [*lines[:place], *new, *lines[place:]]

    return in_lines(changed)


class TestStarFilesThatAreMerelyOdd:
    """They say the same in another way."""

    @pytest.mark.parametrize(
        "change",
        [
            lambda text: text.replace("\n", "\r\n"),
            lambda text: text.replace("\n", "\r"),
            lambda text: "\n".join("\t".join(line.split()) for line in text.split("\n")),
            lambda text: "\n".join(f"  {line}  " for line in text.split("\n")),
            lambda text: "\ufeff# saved by an editor\n" + text,
            lambda text: text.rstrip("\n"),
            lambda text: text + "\n\n\n",
            insert(7, "# the rows below were checked", "", "   ", "\t# twice"),
            with_row(3, lambda words: ['"' + words[0] + '"', *words[1:]]),
            with_row(3, lambda words: ["'" + words[0] + "'", *words[1:]]),
            lambda text: text.replace("data_particles", "data_particles   # from Refine3D"),
            lambda text: text + "\ndata_remarks\n\n_rlnComment 'none of importance'\n",
            lambda text: text + "\ndata_empty\n\nloop_\n_rlnComment #1\n",
        ],
        ids=[
            *("Windows", "old Mac", "tabs", "indented", "byte order mark", "no last newline", "newlines at the end"),
            *("comments and blank lines", "quoted", "single quoted", "comment after the name", "pairs", "empty block"),
        ],
    )
    def test_the_store_is_the_same(self, change: Callable[[str], str], star_set: StarSet, tmp_path: Path) -> None:
        star = star_set.write()
        plain = convert(star, tmp_path / "plain.zarr")
        star.write_bytes(change(star.read_text()).encode())
        assert_same(convert(star, tmp_path / "odd.zarr"), plain)

    def test_two_rows_of_one_image_are_both_kept(self, star_set: StarSet, tmp_path: Path) -> None:
        """RELION allows them: symmetry expansion gives an image as many rows as the group has members."""
        star_set.particles.loc[5, "rlnImageName"] = star_set.particles.loc[4, "rlnImageName"]
        store = convert(star_set.write(), tmp_path / "twice.zarr")
        images = store.read_images(slice(4, 6))
        np.testing.assert_array_equal(images[0], images[1])
        assert (store.columns["rotation"][4] != store.columns["rotation"][5]).any()

    def test_a_list_with_empty_lines_is_the_stacks_it_names(self, star_set: StarSet, tmp_path: Path) -> None:
        star_set.write()
        words = ["--no-ctf", "--apix", "2", "--poses", str(tmp_path / "pose.pkl")]
        (tmp_path / "pose.pkl").write_bytes(pickle.dumps((ROTATIONS, SHIFTS)))
        stacks = star_set.folder / "stacks.txt"
        stacks.write_text(f"\n\n  stack.mrcs  \r\n\n{star_set.stack}\n")
        (tmp_path / "pose.pkl").write_bytes(pickle.dumps((np.tile(ROTATIONS, (2, 1, 1)), np.tile(SHIFTS, (2, 1)))))
        assert len(convert(stacks, tmp_path / "list.zarr", *words)) == 2 * COUNT


@pytest.mark.parametrize(
    ("change", "place", "expected"),
    [
        (with_row(6, lambda words: [*words, "7"]), ", row 6", "more values here than its 11 columns; mend that row"),
        (with_row(6, lambda words: [*words, "7", "8", "9"]), "", "mend that"),
        (with_row(0, lambda words: [*words, "7", "8", "9"]), ", row 0", "more values here than its 11 columns; mend"),
        (with_row(6, lambda words: words[:-1]), ", row 6", "fewer values here than its 11 columns; mend that row"),
        (with_row(6, lambda words: words[:1]), ", row 6", "fewer values here than its 11 columns; mend that row"),
        (lambda text: text.replace("_rlnDefocusV", "_rlnDefocusU"), "", "rlnDefocusU twice; remove one"),
        (in_lines(lambda lines: lines[: first_row(lines)]), "", "no block with particles"),
        (lambda text: text[: text.index("data_particles")], "", "(found data_optics); pass a particle STAR file"),
        (lambda text: "", "", "no line that begins with data_; pass a STAR file"),
        (lambda text: "data_particles\n\nloop_\n1 2 3\n", "", "loop_ without columns; check the file"),
        (lambda text: "data_\n\n" * 3, "", "no block with particles"),
        (lambda text: text.replace("@stack", "@st\0ack"), "", "this is a binary file, not a STAR file"),
        (with_row(2, lambda words: ["9" * 30 + "@stack.mrcs", *words[1:]]), ", row 2", "not number@stack.mrcs"),
        (with_row(2, lambda words: ["9" * 18 + "@stack.mrcs", *words[1:]]), ", row 2", "outside "),
        (with_row(2, lambda words: ["-1@stack.mrcs", *words[1:]]), ", row 2", "not number@stack.mrcs; mend that row"),
        (with_row(2, lambda words: ["1.5@stack.mrcs", *words[1:]]), ", row 2", "not number@stack.mrcs; mend that row"),
        (with_row(2, lambda words: ["3@", *words[1:]]), ", row 2", "not number@stack.mrcs; mend that row"),
        (with_row(2, lambda words: ["3@" + "x" * 9000, *words[1:]]), "", "image files are missing"),
        (with_row(2, lambda words: ["3@nowhere://stack.mrcs", *words[1:]]), None, "lies outside of"),
        (with_row(2, lambda words: ['"' + words[0], *words[1:]]), "", "data_particles"),
        (with_row(2, lambda words: [words[0], "0x1F", *words[2:]]), ", row 2", "'0x1F', not a number"),
        (with_row(2, lambda words: [words[0], "1,5", *words[2:]]), ", row 2", "'1,5', not a number"),
        (with_row(2, lambda words: [*words[:6], "inf", *words[7:]]), ", row 2", "defocus_u is inf, not a number"),
        (with_row(2, lambda words: [*words[:6], "1e300", *words[7:]]), ", row 2", "which float32 does not hold"),
        (with_row(2, lambda words: [*words[:-1], "300"]), ", row 2", "which int8 does not hold; remove or mend"),
        (with_row(2, lambda words: [*words[:-1], "1.5"]), ", row 2", "which int8 does not hold; remove or mend"),
    ],
    ids=[
        *(
            "a value too many",
            "three values too many",
            "three values too many at once",
            "a value too few",
            "an image name alone",
        ),
        *("a column twice", "no rows", "only optics", "empty", "no columns", "blocks of nothing"),
        *("NUL", "30 digits", "18 digits", "negative number", "broken number", "no stack name", "endless name"),
        *("unknown address", "open quote", "hexadecimal", "decimal comma", "infinite defocus", "beyond float32"),
        *("half set 300", "half set 1.5"),
    ],
)
def test_a_damaged_star_file_is_refused(
    change: Callable[[str], str], place: str | None, expected: str, star_set: StarSet, refused: Refused
) -> None:
    star = star_set.write()
    star.write_text(change(star.read_text()))
    sentence = refused(star)
    assert place is None or sentence.startswith(f"{star}{place}: ")
    assert expected in sentence


@pytest.mark.parametrize("value", [0.0, 5.3])
def test_blank_images_are_said(
    value: float, star_set: StarSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    star_set.images[:] = value
    convert(star_set.write(), tmp_path / "blank.zarr", "--dtype", "float32")
    assert "the 20 images that were sampled are blank; extract them again" in capsys.readouterr().out


def test_nothing_is_trained_on_blank_images(
    star_set: StarSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    star_set.images[:] = 0
    store = convert(star_set.write(), tmp_path / "blank.zarr")
    assert main(["train", store.path, "-o", str(tmp_path / "run")]) == 2
    assert f"{store.path}: its images are blank; extract them again, and convert those." in capsys.readouterr().err


def test_bytes_that_are_not_utf_8_are_named_by_their_line(star_set: StarSet, refused: Refused) -> None:
    star = star_set.write()
    lines = star.read_bytes().split(b"\n")
    lines[30] += b" \xff\xfe"
    star.write_bytes(b"\n".join(lines))
    assert refused(star) == f"{star}: line 31 holds the byte 0xff, which is not UTF-8; save the file as UTF-8."


def test_letters_that_would_move_the_cursor_are_not_printed(star_set: StarSet, refused: Refused) -> None:
    star_set.set_value(5, "rlnDefocusU", "\x1b[2J\x07unknown")
    assert refused(star_set.write()).isprintable()


@pytest.mark.parametrize("value", [0, -2.0, "nan", "inf", 1e-9, 1e9])
def test_a_pixel_size_that_cannot_be_is_refused(value: Any, star_set: StarSet, refused: Refused) -> None:
    star_set.optics["rlnImagePixelSize"] = star_set.optics["rlnImagePixelSize"].astype(object)
    star_set.optics.loc[0, "rlnImagePixelSize"] = value
    star = star_set.write()
    assert refused(star).startswith(f"{star}, row 0: ")
    star_set.optics["rlnImagePixelSize"] = 2.0
    star = star_set.write("good.star")
    assert refused(star, "--apix", str(value)).startswith(f"{star}, row 0: apix is ")


def put(offset: int, kind: str, *values: float) -> Callable[[bytes], bytes]:
    """Write numbers into a header."""

    def harm(content: bytes) -> bytes:
        new = struct.pack(f"<{len(values)}{kind}", *values)
        return content[:offset] + new + content[offset + len(new) :]

    return harm


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (put(8, "i", 0), "its header says 0 images of 16 x 16 px"),
        (put(8, "i", -20), "its header says -20 images of 16 x 16 px"),
        (put(0, "i", -16, -16), "images of -16 x -16 px"),
        (put(0, "i", 0, 0), "images of 0 x 0 px"),
        (put(0, "i", 16, 18), "images must be square with an even box size"),
        (put(0, "i", 2**31 - 1, 2**31 - 1), "images must be square with an even box size"),
        (put(0, "i", 2**31 - 2, 2**31 - 2), "the file is cut short: its header says 20 images, 0 are there"),
        (put(8, "i", 2**31 - 1), "the file is cut short: its header says 2147483647 images, 20 are there"),
        (put(12, "i", 101), "this is not an MRC stack"),
        (put(12, "i", 16), "this is not an MRC stack"),
        (put(12, "i", 3), "MRC"),
        (put(12, "i", -1), "this is not an MRC stack"),
        (put(92, "i", -4), "an extended header of -4 bytes"),
        (put(92, "i", 2**31 - 1), "the file is cut short: its header says 20 images, 0 are there"),
        (lambda content: content[:1023], "this is not an MRC stack (1023 bytes)"),
        (lambda content: content[:1024], "its header says 20 images, 0 are there; copy it again"),
        (lambda content: content[::-1], ""),
        (lambda content: b"\x1f\x8b" + content, ""),
        (lambda content: content.replace(b"\0\0\0\0", b"\r\n\0\0", 4), ""),
    ],
    ids=[
        *("no images", "negative count", "negative size", "no size", "not square", "largest odd", "largest even"),
        *("largest count", "mode 101", "mode 16", "mode 3", "mode -1", "negative extension", "endless extension"),
        *("header cut short", "header alone", "backwards", "gzip", "moved"),
    ],
)
def test_a_damaged_stack_is_refused(
    harm: Callable[[bytes], bytes], expected: str, star_set: StarSet, refused: Refused
) -> None:
    star = star_set.write()
    star_set.stack.write_bytes(harm(star_set.stack.read_bytes()))
    sentence = refused(star)
    assert sentence.startswith(f"{star_set.stack}: ")
    assert expected in sentence


class TestPaths:
    """What is in the place of a file."""

    @pytest.fixture
    def words_of(self, star_set: StarSet) -> dict[str, list[str]]:
        """A call for every kind of file, all of which are ``hostile`` in the set's folder."""
        star, hostile = str(star_set.write()), star_set.folder / "hostile"
        star_set.stack_name = "hostile.mrcs"
        named = str(star_set.folder / "named.star")
        star_set.particles["rlnImageName"] = [f"{number}@hostile.mrcs" for number in range(1, COUNT + 1)]
        star_set.write_table("named.star")
        (star_set.folder / "list.txt").write_text("hostile.mrcs\n")
        return {
            ".star": [f"{hostile}.star"],
            ".cs": [f"{hostile}.cs"],
            ".txt": [f"{hostile}.txt", "--no-ctf"],
            ".mrcs": [named],
            ".mrc": [f"{hostile}.mrc", "--no-ctf"],
            ".pkl": [star, "--poses", f"{hostile}.pkl"],
            ".npy": [star, "--ind", f"{hostile}.npy"],
        }

    SUFFIXES = (".star", ".cs", ".txt", ".mrcs", ".mrc", ".pkl", ".npy")

    @pytest.mark.parametrize("suffix", SUFFIXES)
    @pytest.mark.parametrize(
        "make",
        [
            lambda path: os.mkfifo(path),
            lambda path: path.symlink_to(path),
            lambda path: path.symlink_to("nowhere"),
            lambda path: path.symlink_to("/dev/zero"),
            lambda path: path.write_bytes(b""),
            lambda path: path.write_bytes(bytes(3000)),
            lambda path: path.write_bytes(b"\xff" * 3000),
            lambda path: path.write_bytes(b"PK\x03\x04" + bytes(3000)),
        ],
        ids=["pipe", "link to itself", "link to nowhere", "endless", "empty", "zeros", "ones", "archive"],
    )
    def test_what_is_no_such_file_is_refused(
        self,
        suffix: str,
        make: Callable[[Path], None],
        words_of: dict[str, list[str]],
        star_set: StarSet,
        refused: Refused,
    ) -> None:
        make(star_set.folder / f"hostile{suffix}")
        assert f"hostile{suffix}" in refused(*words_of[suffix])

    @pytest.mark.parametrize(
        "suffix", [suffix for suffix in SUFFIXES if suffix not in (".star", ".cs", ".txt", ".mrc")]
    )
    def test_a_folder_is_no_file(
        self, suffix: str, words_of: dict[str, list[str]], star_set: StarSet, refused: Refused
    ) -> None:
        (star_set.folder / f"hostile{suffix}").mkdir()
        assert f"hostile{suffix}" in refused(*words_of[suffix])

    @pytest.mark.parametrize("suffix", [".star", ".cs", ".txt", ".mrc"])
    def test_a_folder_of_particles_can_only_be_of_cryodrgn(
        self, suffix: str, words_of: dict[str, list[str]], star_set: StarSet, refused: Refused
    ) -> None:
        (star_set.folder / f"hostile{suffix}").mkdir()
        assert "this is a folder" in refused(words_of[suffix][0])

    @pytest.mark.parametrize("name", ["particles.STAR", "stack.MRCS", "particles.cs.gz", "particles", ".star.bak"])
    def test_another_suffix_is_refused(self, name: str, star_set: StarSet, refused: Refused) -> None:
        """Upper case too: RELION opens no such file either, and what a name means must not depend on the disk."""
        path = star_set.write().rename(star_set.folder / name)
        assert refused(path).startswith(f"{path}: its name ends in none of .star, .cs, .mrcs, .mrc, .txt; pass ")

    @pytest.mark.parametrize(
        "text", ["", "\n \n", "list.txt\n", "stack.mrcs\nnowhere.mrcs\n", "st\0ack.mrcs\n", "/\n", "..\n"]
    )
    def test_a_list_that_names_no_stacks_is_refused(self, text: str, star_set: StarSet, refused: Refused) -> None:
        star_set.write()
        (star_set.folder / "list.txt").write_text(text)
        assert refused(star_set.folder / "list.txt", "--no-ctf").startswith(f"{star_set.folder}/list.txt: ")

    @pytest.fixture
    def open_folder(self) -> Iterator[Path]:
        """A folder that everybody may enter."""
        with tempfile.TemporaryDirectory() as name:
            os.chmod(name, 0o777)
            yield Path(name)

    @pytest.mark.parametrize("suffix", [".star", ".mrcs", ".pkl"])
    def test_a_file_that_may_not_be_read_is_refused(
        self, suffix: str, open_folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        locked = random_set(open_folder / "set")
        star = locked.write()
        poses = locked.folder / "pose.pkl"
        poses.write_bytes(pickle.dumps((ROTATIONS, SHIFTS)))
        words = ["convert", str(star), "--poses", str(poses), "--workers", "0", "-o"]
        assert main([*words, str(open_folder / "readable.zarr")]) == 0  # and loads code that others may not read
        capsys.readouterr()
        closed = {".star": star, ".mrcs": locked.stack, ".pkl": poses}[suffix]
        closed.chmod(0)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)
        try:
            code = main([*words, str(open_folder / "a.zarr")])
        finally:
            if is_root:
                os.seteuid(0)
        expected = f"drgn-ray: {closed}: cannot be read (Permission denied); check its permissions.\n"
        assert (code, capsys.readouterr().err) == (2, expected)


class Calls:
    """An object whose pickle calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.reduced


def text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def array_pickle(shape: bytes, dtype: bytes, content: bytes) -> bytes:
    """Write by hand a pickled array."""
    head = b"\x80\x02cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\x01b\x87R"
    return head + b"(K\x01" + shape + dtype + b"\x89" + content + b"tb."


def dtype_pickle(name: str, flags: int) -> bytes:
    return (
        b"cnumpy\ndtype\n"
        + text(name)
        + b"\x89\x88\x87R(K\x03"
        + text("|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK"
        + bytes([flags, ord("t"), ord("b")])
    )


TRILLION = b"\x8a\x06" + (10**12).to_bytes(6, "little") + b"\x85"
POINTERS = b"B" + struct.pack("<I", 32) + b"A" * 32
DOUBLED = b"2\x86" * 60  # a tuple of itself twice, 60 times over
HOSTILE_PICKLES = {
    "objects whose pointers are in the file": array_pickle(b"K\x04\x85", dtype_pickle("O8", 0), POINTERS),
    "a memo of gigabytes": b"\x80\x02]r\xff\xff\xff\xef.",
    "bytes of terabytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 42) + b"abc.",
    "a byte array of terabytes": b"\x80\x05\x96" + struct.pack("<Q", 1 << 42) + b"abc.",
    "a byte array of a few gigabytes": b"\x80\x05\x96" + struct.pack("<Q", 1 << 33) + b"abc.",
    "text of terabytes": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 42) + b"abc.",
    "an array of 10^12 numbers": array_pickle(TRILLION, dtype_pickle("f8", 0), b"C\x03abc"),
    "an array made by its class": b"\x80\x02cnumpy\nndarray\n" + TRILLION + b"\x85R.",
    "tuples within tuples": b"\x80\x04)" + DOUBLED + b".",
    "lists within lists": b"\x80\x04]" + b"".join(b"q%c](h%ch%ce" % (n, n, n) for n in range(60)) + b".",
    "a key that takes an age to hash": b"\x80\x04)" + DOUBLED + b"q\0}h\0Ns.",
    "a list that holds itself": b"\x80\x02]q\0(h\0h\0h\0h\0h\0h\0h\0h\0e.",
    "an array that is filled anew": b"\x80\x02cnumpy._core.numeric\n_frombuffer\n("
    + array_pickle(b"K\x04\x85", dtype_pickle("u1", 0), b"C\x04abcd")[2:-1]
    + dtype_pickle("u1", 0)
    + b"K\x04\x85C\x01CtR.",
    "no end": b"\x80\x02" + b"(" * 100_000,
    "deep tuples": b"\x80\x02)" + b"\x85" * 100_000 + b".",
    "two lines in a name": b"\x80\x04\x8c\x05os\nos\x8c\x06sys\ntem\x93.",
    "an encoder": b"\x80\x02c_codecs\nencode\n" + text("abc") + text("idna") + b"\x86R.",
    "a persistent object": b"Pabc\n.",
    "a registered object": b"\x80\x02\x82\x01.",
    "an object of a class": b"\x80\x02cnumpy\ndtype\n)\x81.",
    "a changed function": b"\x80\x02cnumpy._core.multiarray\nscalar\nNNN\x86b.",
    "numbers that are no dtype": array_pickle(b"K\x04\x85", text("f8"), b"C\x03abc"),
    "a type made of types": array_pickle(b"K\x04\x85", dtype_pickle("f8,O", 0), b"C\x03abc"),
}


ORDINARY = np.arange(24.0).reshape(2, 3, 4)


class TestPickles:
    """What a pickle may say: it is not run, takes no memory that the file does not hold, and ends soon."""

    @pytest.fixture
    def bounded(self) -> Iterator[None]:
        """One more gigabyte of memory than there is now."""
        pages = int(Path("/proc/self/statm").read_text().split()[0]) if os.path.exists("/proc/self/statm") else 0
        before = resource.getrlimit(resource.RLIMIT_AS)
        if pages:
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30), before[1]))
        yield
        resource.setrlimit(resource.RLIMIT_AS, before)

    @pytest.mark.parametrize("flag", ["--poses", "--ctf", "--ind"])
    @pytest.mark.parametrize("name", HOSTILE_PICKLES)
    def test_a_hostile_one_is_refused(
        self, name: str, flag: str, star_set: StarSet, bounded: None, refused: Refused
    ) -> None:
        star, hostile = star_set.write(), star_set.folder / "hostile.pkl"
        hostile.write_bytes(HOSTILE_PICKLES[name])
        assert refused(star, flag, str(hostile)).startswith(f"{hostile}: ")

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    @pytest.mark.parametrize(
        "call",
        [
            lambda mark: Calls(os.system, f"touch '{mark}'"),
            lambda mark: Calls(eval, f"open({str(mark)!r}, 'w')"),
            lambda mark: Calls(os.mkdir, str(mark)),
            lambda mark: (ROTATIONS, Calls(os.mkdir, str(mark))),
            lambda mark: np.array([Calls(os.mkdir, str(mark))] * COUNT, object),
            lambda mark: {"rotation": Calls(os.mkdir, str(mark))},
        ],
        ids=["os.system", "eval", "mkdir", "in a tuple", "in an array", "in a dictionary"],
    )
    def test_nothing_is_run_in_any_protocol(
        self, protocol: int, call: Callable[[Path], Any], star_set: StarSet, tmp_path: Path, refused: Refused
    ) -> None:
        star, hostile = star_set.write(), star_set.folder / "hostile.pkl"
        hostile.write_bytes(pickle.dumps(call(tmp_path / "it ran"), protocol))
        assert refused(star, "--poses", str(hostile)).startswith(f"{hostile}: this is not a pickle of numpy arrays (")
        assert not (tmp_path / "it ran").exists()

    @pytest.mark.parametrize(
        ("change", "found"),
        [
            (lambda rotation: 0 * rotation, "is no rotation"),
            (lambda rotation: 1.01 * rotation, "is no rotation"),
            (lambda rotation: rotation * [1, 1, -1], "is no rotation"),
            (lambda rotation: rotation + [[0, 0.1, 0], [0, 0, 0], [0, 0, 0]], "is no rotation"),
            (lambda rotation: rotation * np.nan, "not a number"),
            (lambda rotation: rotation * 1e200, "is no rotation"),
        ],
        ids=["zeros", "scaled", "left-handed", "sheared", "not a number", "huge"],
    )
    def test_a_pose_that_is_no_rotation_is_refused(
        self, change: Callable[[np.ndarray], np.ndarray], found: str, star_set: StarSet, refused: Refused
    ) -> None:
        rotations, poses = ROTATIONS.copy(), star_set.folder / "pose.pkl"
        rotations[13] = change(rotations[13])
        poses.write_bytes(pickle.dumps((rotations, SHIFTS)))
        sentence = refused(star_set.write(), "--poses", str(poses))
        assert sentence.startswith(f"{poses}, row 13: ")
        assert found in sentence

    @pytest.mark.parametrize(
        ("column", "value", "found"),
        [
            (0, 0, "the images are said to have 0 px of 2 Å"),
            (0, -16, "the images are said to have -16 px of 2 Å"),
            (1, 0, "the images are said to have 16 px of 0 Å"),
            (1, np.nan, "the images are said to have 16 px of nan Å"),
            (2, np.inf, "defocus_u is inf, not a number"),
            (5, 3e5, "voltage is 300000 kV, outside 10 to 2000"),
            (7, 10, "amplitude_contrast is 10 "),
        ],
    )
    def test_a_ctf_that_cannot_be_is_refused(
        self, column: int, value: float, found: str, star_set: StarSet, refused: Refused
    ) -> None:
        parameters, ctf = CTF.copy(), star_set.folder / "ctf.pkl"
        parameters[4, column] = value
        ctf.write_bytes(pickle.dumps(parameters))
        sentence = refused(star_set.write(), "--ctf", str(ctf))
        assert sentence.startswith(f"{ctf}, row 4: ")
        assert found in sentence

    @pytest.mark.parametrize(
        "chosen",
        [
            *(np.array([1.0, 2.0]), [1, 2.5], [-1, 3], [2**70], np.array([2**63], np.uint64), [[1, 2]], []),
            *(["1"], "12", {1, 2}, np.array([1 + 2j])),
        ],
        ids=[
            *("floats", "a float", "negative", "beyond 64 bits", "beyond int64", "nested", "none"),
            *("text", "a word", "a set", "complex"),
        ],
    )
    def test_a_selection_that_is_none_is_refused(self, chosen: Any, star_set: StarSet, refused: Refused) -> None:
        ind = star_set.folder / "ind.pkl"
        ind.write_bytes(pickle.dumps(chosen))
        assert refused(star_set.write(), "--ind", str(ind)).startswith(f"{ind}: ")

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    @pytest.mark.parametrize(
        "array",
        [
            *(ORDINARY, ORDINARY.T, ORDINARY.swapaxes(0, 1), ORDINARY[:, ::2], np.broadcast_to(ORDINARY, (5, 2, 3, 4))),
            *(ORDINARY.astype(">f4"), ORDINARY.astype("f2"), ORDINARY > 3, np.array(3.0)),
        ],
        ids=[
            *("plain", "Fortran's order", "swapped axes", "strided", "broadcast", "big-endian", "float16", "booleans"),
            "a number",
        ],
    )
    def test_every_array_of_numbers_is_read(self, array: np.ndarray, protocol: int, tmp_path: Path) -> None:
        """One that is there twice is one, as pickle has it."""
        (tmp_path / "arrays.pkl").write_bytes(pickle.dumps((array, array, np.int64(7)), protocol))
        first, second, number = read_pickle(str(tmp_path / "arrays.pkl"))
        np.testing.assert_array_equal(first, array)
        assert second is first
        assert number == 7

    def test_one_matrix_for_all_images_is_refused(self, star_set: StarSet, refused: Refused) -> None:
        poses = star_set.folder / "pose.pkl"
        poses.write_bytes(pickle.dumps(np.eye(3)))
        assert refused(star_set.write(), "--poses", str(poses)).startswith(f"{poses}: holds (3, 3) numbers, not poses")


def npy(header: str, content: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header.encode() + b"\n" + content


def shaped(shape: str, kind: str = "'<i8'", content: bytes = b"") -> bytes:
    return npy(f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}}}", content)


HOSTILE_ARRAYS = {
    "10^12 numbers": shaped("(1000000000000,)"),
    "more numbers than 64 bits count": shaped("(4294967296, 4294967297)"),
    "a negative number of numbers": shaped("(-5,)"),
    "rows of nothing": shaped("(100000000000,)", "[('a', '<f4', (0,))]"),
    "objects": shaped("(3,)", "'|O'", pickle.dumps([Calls(os.mkdir, "it ran")])),
    "a header that is a call": npy("__import__('os').mkdir('it ran')"),
    "a deep header": npy("(" * 5000),
    "no type of numpy": shaped("(3,)", "'x9'"),
    "floats": shaped("(1,)", "'<f8'", bytes(8)),
    "a table": shaped("(1, 1)", "'<i8'", bytes(8)),
}


@pytest.mark.parametrize("suffix", [".npy", ".cs"])
@pytest.mark.parametrize("name", HOSTILE_ARRAYS)
def test_a_hostile_array_is_refused_and_does_not_run(
    name: str, suffix: str, star_set: StarSet, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(star_set.folder)
    star, hostile = star_set.write(), star_set.folder / f"hostile{suffix}"
    hostile.write_bytes(HOSTILE_ARRAYS[name])
    words = [str(hostile)] if suffix == ".cs" else [str(star), "--ind", str(hostile)]
    assert refused(*words).startswith(f"{hostile}: ")
    assert not os.path.exists("it ran")


@pytest.mark.parametrize(
    "content", ["1 2 x", "1.5", "9" * 30, "9" * 5000, "1\n1\n", "-1", "\0", "\xff\xfe", "1" * 100_000]
)
def test_a_text_that_is_no_selection_is_refused(content: str, star_set: StarSet, refused: Refused) -> None:
    (star_set.folder / "ind.txt").write_text(content, encoding="latin1")
    sentence = refused(star_set.write(), "--ind", str(star_set.folder / "ind.txt"))
    assert sentence.startswith(f"{star_set.folder}/ind.txt: ")
    assert len(sentence) < 1200


@pytest.mark.parametrize("first", ["0", "-3"])
def test_a_selection_of_which_nothing_is_kept_is_refused(first: str, star_set: StarSet, refused: Refused) -> None:
    (star_set.folder / "ind.txt").write_text("3 4 5")
    sentence = refused(star_set.write(), "--ind", str(star_set.folder / "ind.txt"), "--first", first)
    assert sentence == f"--first {first}: it would keep nothing; pass a positive number."


def with_field(name: str, values: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Give a field other values, of whatever type and shape they are."""

    def changed(table: np.ndarray) -> np.ndarray:
        new = np.asarray(values)
        new = np.broadcast_to(new, (len(table), *new.shape))
        types = [
            (field, new.dtype, new.shape[1:]) if field == name else (field, table.dtype[field])
            for field in table.dtype.names or ()
        ]
        other = np.zeros(len(table), types)
        for field in table.dtype.names or ():
            other[field] = new if field == name else table[field]
        return other

    return changed


def with_value(name: str, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def changed(table: np.ndarray) -> np.ndarray:
        table[name][5] = value
        return table

    return changed


OPTIONAL_CS_FIELDS = ("blob/shape", "blob/sign", "ctf/exp_group_id", "alignments3D/split")
CS_FIELDS = [name for name in small_table(1).dtype.names or () if name != "uid"]


class TestCryosparc:
    """Tables of ``.cs`` files."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """A job folder with 12 images of noise."""
        write_stack(tmp_path / "stack.mrcs", np.random.default_rng(0).standard_normal((12, 16, 16), np.float32))
        return tmp_path

    @pytest.mark.parametrize(
        ("change", "place", "expected"),
        [
            (with_value("alignments3D/pose", np.nan), ", row 5", "not a number; remove or mend that row"),
            (with_value("alignments3D/pose", np.inf), ", row 5", "not a number; remove or mend that row"),
            (with_value("alignments3D/shift", np.nan), ", row 5", "translation is [nan nan], not a number"),
            (with_value("ctf/df1_A", np.inf), ", row 5", "defocus_u is inf, not a number"),
            (with_value("ctf/df1_A", 1e30), ", row 5", "outside -200000 to 2e+06; check the unit"),
            (with_value("blob/psize_A", 0), ", row 5", "apix is 0 Å/px, outside"),
            (with_value("blob/idx", 12), ", row 5", "image number 13 is outside"),
            (with_field("blob/idx", np.int64(-1)), ", row 0", "image number 0 is outside"),
            (with_field("blob/idx", np.uint64(2**64 - 1)), ", row 0", "image number 0 is outside"),
            (with_field("blob/path", b"nowhere.mrcs"), "", "1 of its 1 image files are missing"),
            (with_field("blob/path", b""), "", "1 of its 1 image files are missing"),
            (with_field("blob/path", b"a\0b.mrcs"), "", "1 of its 1 image files are missing"),
            (with_field("blob/path", b"\xff\xfe.mrcs"), "", "1 of its 1 image files are missing"),
            (with_value("blob/shape", 18), ", row 5", "it says 18 px"),
            (lambda table: table[:0], "", "the table is empty; pass a .cs file with particles"),
            (lambda table: np.zeros(12), "", "this array has no named columns"),
            (lambda table: table.reshape(3, 4), "", "this array has no named columns"),
            (lambda table: table[["uid"]], "", "(found uid)"),
            (with_field("ctf/accel_kv", np.datetime64("2026-01-01")), "", "which cryoSPARC does not write"),
        ],
        ids=[
            *("pose nan", "pose inf", "shift nan", "defocus inf", "defocus 1e30", "no pixel size", "index outside"),
            *("negative index", "largest index", "no stack", "no path", "NUL in a path", "bytes in a path", "box size"),
            *("no rows", "no names", "two dimensions", "uid alone", "dates"),
        ],
    )
    def test_a_damaged_table_is_refused(
        self,
        change: Callable[[np.ndarray], np.ndarray],
        place: str,
        expected: str,
        folder: Path,
        refused: Refused,
    ) -> None:
        path = folder / "x.cs"
        csdat.write_cs(str(path), change(small_table()))
        sentence = refused(path)
        assert sentence.startswith(f"{path}{place}: ")
        assert expected in sentence

    @pytest.mark.parametrize("field", CS_FIELDS)
    @pytest.mark.parametrize(
        "values", [b"text", np.zeros(7), np.zeros((3, 3)), 1 + 2j], ids=["text", "vector", "matrix", "complex"]
    )
    def test_a_field_of_another_kind_is_refused(self, field: str, values: Any, folder: Path, refused: Refused) -> None:
        values = np.zeros((2, 2)) if field == "blob/path" and isinstance(values, bytes) else values
        path = folder / "x.cs"
        csdat.write_cs(str(path), with_field(field, values)(small_table()))
        sentence = refused(path)
        assert sentence.startswith(f"{path}: {field} holds ")
        assert sentence.endswith("; pass the .cs file as cryoSPARC wrote it.")

    @pytest.mark.parametrize("field", [name for name in CS_FIELDS if name not in OPTIONAL_CS_FIELDS])
    def test_a_missing_field_is_named(self, field: str, folder: Path, refused: Refused) -> None:
        table = small_table()
        csdat.write_cs(str(folder / "x.cs"), table[[name for name in table.dtype.names or () if name != field]])
        assert refused(folder / "x.cs").startswith(f"{folder}/x.cs: no {field} (found ")

    @pytest.mark.parametrize("number", range(13))
    def test_csdat_with_a_damaged_header_is_refused(self, number: int, folder: Path, refused: Refused) -> None:
        Dataset(small_table()).save(str(folder / "x.cs"), format=CSDAT_FORMAT)
        raw = (folder / "x.cs").read_bytes()
        size = int.from_bytes(raw[6:10], "little")
        header = json.loads(raw[10 : 10 + size])
        harms: list[Callable[[dict[str, Any]], Any]] = [
            lambda h: h | {"length": -1},
            lambda h: h | {"length": "12"},
            lambda h: h | {"length": 1 << 32},
            lambda h: h | {"length": 1 << 32, "dtype": []},
            lambda h: h | {"length": 1 << 32, "dtype": [["a", "<f4", [0]]]},
            lambda h: h | {"dtype": [[name, "|O", *shape] for name, _, *shape in h["dtype"]]},
            lambda h: h | {"dtype": [[name, "<M8[s]", *shape] for name, _, *shape in h["dtype"]]},
            lambda h: h | {"dtype": [[name, kind, [-2]] for name, kind, *_ in h["dtype"]]},
            lambda h: h | {"dtype": [["uid", *rest] for _, *rest in h["dtype"]]},
            lambda h: h | {"compressed_fields": []},
            lambda h: h | {"compressed_fields": [name for name, *_ in h["dtype"]]},
            lambda h: [h],
            lambda h: {},
        ]
        text = json.dumps(harms[number](header)).encode()
        (folder / "x.cs").write_bytes(raw[:6] + struct.pack("<I", len(text)) + text + raw[10 + size :])
        assert refused(folder / "x.cs").startswith(f"{folder}/x.cs: ")

    def test_csdat_cut_anywhere_is_refused(self, folder: Path) -> None:
        Dataset(small_table()).save(str(folder / "x.cs"), format=CSDAT_FORMAT)
        whole = (folder / "x.cs").read_bytes()
        for end in range(0, len(whole) - 12, 41):
            (folder / "x.cs").write_bytes(whole[:end])
            assert main(["convert", str(folder / "x.cs"), "-o", str(folder / "x.zarr"), "--workers", "0"]) == 2
        assert not (folder / "x.zarr").exists()


class TestOutput:
    """Where what is written cannot be written."""

    @pytest.fixture
    def star(self, tmp_path: Path) -> Path:
        """2,000 images of 16 px: a megabyte as float16."""
        return random_set(tmp_path / "set", count=2000).write()

    @pytest.fixture
    def full_disk(self, tmp_path: Path) -> Iterator[Path]:
        """A disk of 256 KiB."""
        (tmp_path / "disk").mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(tmp_path / "disk")]
        try:
            mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            pytest.skip(f"no small disk can be mounted here ({error})")
        if mounted.returncode:
            pytest.skip(f"no small disk can be mounted here ({mounted.stderr.strip()})")
        yield tmp_path / "disk"
        subprocess.run(["umount", "--lazy", str(tmp_path / "disk")], check=True)

    @pytest.fixture
    def small_files(self) -> Iterator[None]:
        """No file may grow beyond 64 KiB, which fails as a full disk does, but needs no rights."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
        yield
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    def refuse(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
        capsys.readouterr()
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    def test_a_store_on_a_full_disk_is_refused_and_is_not_whole(
        self, star: Path, full_disk: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        line = self.refuse(["convert", str(star), "-o", f"{full_disk}/a.zarr", "--workers", "0"], capsys)
        assert f"{full_disk}/a.zarr: " in line
        assert "No space left on device" in line
        with pytest.raises(StoreError):
            ParticleStore(full_disk / "a.zarr")

    def test_a_store_that_may_not_grow_is_refused_and_is_finished_later(
        self, star: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
    ) -> None:
        words = ["convert", str(star), "-o", f"{tmp_path}/a.zarr", "--workers", "0"]
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        request.getfixturevalue("small_files")
        assert "File too large" in self.refuse(words, capsys)
        with pytest.raises(StoreError):
            ParticleStore(tmp_path / "a.zarr")
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert main([*words, "--overwrite"]) == 0
        assert len(ParticleStore(tmp_path / "a.zarr")) == 2000

    @pytest.mark.parametrize("name", ["a.star", "a.cs", "a.mrcs"])
    def test_an_export_that_may_not_grow_leaves_nothing(
        self, name: str, star: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
    ) -> None:
        convert(star, tmp_path / "a.zarr")
        (tmp_path / "out").mkdir()
        request.getfixturevalue("small_files")
        line = self.refuse(["export", f"{tmp_path}/a.zarr", "-o", f"{tmp_path}/out/{name}"], capsys)
        assert f"{tmp_path}/out/{name}: it cannot be written (" in line
        assert list((tmp_path / "out").iterdir()) == []

    @pytest.mark.parametrize("name", ["a.star", "a.cs", "a.mrcs"])
    def test_an_export_to_a_full_disk_leaves_nothing(
        self, name: str, star: Path, tmp_path: Path, full_disk: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        convert(star, tmp_path / "a.zarr")
        (full_disk / "other").write_bytes(bytes(200 << 10))
        line = self.refuse(["export", f"{tmp_path}/a.zarr", "-o", f"{full_disk}/{name}"], capsys)
        assert f"{full_disk}/{name}: it cannot be written (" in line
        assert os.listdir(full_disk) == ["other"]

    def test_inputs_for_cryodrgn_that_may_not_grow_leave_nothing(
        self, star: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
    ) -> None:
        convert(star, tmp_path / "a.zarr")
        request.getfixturevalue("small_files")
        line = self.refuse(["export", f"{tmp_path}/a.zarr", "--cryodrgn", f"{tmp_path}/theirs"], capsys)
        assert "it cannot be written (" in line
        assert not (tmp_path / "theirs").exists()

    @pytest.mark.parametrize("place", ["file.txt/a.star", "folder.star", "loop/a.star"])
    def test_an_export_to_no_place_is_refused(
        self, place: str, star_set: StarSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        convert(star_set.write(), tmp_path / "a.zarr")
        (tmp_path / "file.txt").write_text("text")
        (tmp_path / "folder.star").mkdir()
        (tmp_path / "folder.star" / "thesis.tex").write_text("text")
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        words = ["export", f"{tmp_path}/a.zarr", "-o", f"{tmp_path}/{place}", "--overwrite"]
        assert f"{tmp_path}/{place}: " in self.refuse(words, capsys)

    @pytest.mark.parametrize("place", ["pipe", "loop", "", "file.star"])
    def test_a_store_at_no_place_is_refused(
        self, place: str, star_set: StarSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        (tmp_path / "file.star").write_text("text")
        output = f"{tmp_path}/{place}" if place else ""
        line = self.refuse(["convert", str(star_set.write()), "-o", output, "--workers", "0"], capsys)
        assert line.startswith(f"drgn-ray: {output}: " if place else "drgn-ray: -o: ")
        assert (tmp_path / "file.star").read_text() == "text"
