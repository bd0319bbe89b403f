"""Image stacks as a source of their own, and finding the stacks that a table names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from conversions import files, mrcs
from conversions.table import Columns, Locations, single_particles
from drgn_ray.errors import ParticleFileError

TRIED = 8  # names, to find the folder that they start from


def find_stacks(path: str, names: Sequence[str], datadir: str | None) -> tuple[tuple[str, ...], list[bool]]:
    """Say where the stacks that a table names should be, and which of them are there.

    Parameters
    ----------
    path
        The table, from whose folder or a folder above it names start.
    datadir
        Folder that names start from, or that holds the stacks themselves, or that what they name from the table's
        folder is in.

    Raises
    ------
    ParticleFileError
        A name leads out of the folder that names start from (``/etc/x.mrcs``, ``../x.mrcs``, ``s3://x.mrcs``).
    """
    folder = files.folder_of(path)
    if datadir is None:
        root = _root(folder, [name for name in names[:TRIED] if _stays(name)])
        found = [files.join(root if _stays(name) else folder, name) for name in names]
        _refuse_outside(path, names, found, root)
        return tuple(found), files.at_the_same_time(files.is_file, found)
    root = files.absolute(datadir)
    tried = [_places(root, folder, name) for name in names]
    found = files.at_the_same_time(lambda places: next(filter(files.is_file, places), places[-1]), tried)
    there = files.at_the_same_time(files.is_file, found)
    _refuse_ambiguous(path, names, found, there)
    return tuple(found), there


def _stays(name: str) -> bool:
    """Whether a name leads to something in whatever folder it starts from."""
    return not files.is_url(name) and files.is_below(files.join("/x", name), "/x")


def _root(folder: str, names: Sequence[str]) -> str:
    """Find the folder that names start from: the nearest of those in which most are there."""
    above = [each for each in files.parents(folder) if each != "/"] or [folder]
    return max(above, key=lambda root: _num_there(root, names))


def _places(root: str, folder: str, name: str) -> list[str]:
    """Places in a folder at which a stack may be; the last is where it is missed."""
    named = [files.join(start, name) for start in ([root] if _stays(name) else [root, folder])]
    return [*(place for place in named if files.is_below(place, root)), files.join(root, name.rpartition("/")[2])]


def _refuse_outside(path: str, names: Sequence[str], found: Sequence[str], root: str) -> None:
    for name, place in zip(names, found, strict=True):
        if not files.is_below(place, root):
            raise ParticleFileError(
                path,
                f"its image file {name} lies outside of {root}, and a file from elsewhere could name any",
                f"pass --datadir {files.folder_of(place)}, or a folder above it, if it is meant",
            )


def _refuse_ambiguous(path: str, names: Sequence[str], found: list[str], there: list[bool]) -> None:
    """Refuse if one file would stand for stacks of several folders."""
    name_of: dict[str, str] = {}
    for name, place, is_there in zip(names, found, there, strict=True):
        if is_there and name_of.setdefault(place, name) != name:
            raise ParticleFileError(
                path,
                f"{place} would be taken for both {name_of[place]} and {name}",
                "pass as --datadir the folder that these paths start from",
            )


def _num_there(root: str, names: Sequence[str]) -> int:
    return sum(files.at_the_same_time(files.is_file, [files.join(root, name) for name in names]))


def locate(path: str, named: Locations, datadir: str | None) -> Locations:
    """Find the stacks that a table names (`find_stacks`); refuse where one is missing."""
    found, there = find_stacks(path, named.stacks, datadir)
    missing = [name for name, is_there in zip(found, there, strict=True) if not is_there]
    if missing:
        raise ParticleFileError(
            path,
            f"{len(missing)} of its {len(found)} image files are missing, the first is {missing[0]}",
            "pass --datadir FOLDER, the folder the paths in the file start from",
        )
    return named._replace(stacks=found)


def read_headers(stacks: tuple[str, ...]) -> tuple[mrcs.StackHeader, ...]:
    """Read and check the headers of all stacks."""
    return tuple(files.at_the_same_time(mrcs.read_header, stacks))


class StackSource:
    """An MRC stack, or a ``.txt`` list of stacks (a path a line, from the list's folder); images and nothing else."""

    protein_is_white = None

    def __init__(self, path: str, datadir: str | None) -> None:
        self.path = path
        self.assumptions: list[str] = []
        is_list = path.endswith(".txt")
        self.files = (path,) if is_list else ()
        names = read_list(path) if is_list else (files.absolute(path),)
        nothing = np.zeros(0, np.int64)
        named = Locations(names, nothing, nothing)
        self._headers = read_headers(locate(path, named, datadir).stacks if is_list else names)
        if not is_list and path.endswith(".mrc") and self._headers[0].is_cube:
            raise ParticleFileError(
                path, f"this is a volume of {self._headers[0].box_size} px, not a stack", "pass the particles' stack"
            )
        self._first = np.cumsum([0] + [header.num_images for header in self._headers])

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def tables(self) -> dict[str, pa.Table]:
        """Stack and 0-based image of every row."""
        where = self.locations(np.arange(len(self)))
        return {"table": pa.table({"image": where.index_of, "stack": pa.array(where.stacks).take(where.stack_of)})}

    def check_raw(self) -> None:
        """Nothing is said of filtered images."""

    def images_named(self, rows: Int[np.ndarray, " n"]) -> Locations:
        """Find the images of some rows: the stacks were found before."""
        return self.locations(rows)

    def locations(self, rows: Int[np.ndarray, " n"]) -> Locations:
        """Find the images of some rows."""
        stack_of = np.searchsorted(self._first, rows, side="right") - 1
        return Locations(tuple(header.path for header in self._headers), stack_of, rows - self._first[stack_of])

    def pixel_size(self) -> Float[np.ndarray, " N"]:
        """Refuse: a header's pixel size is wrong too often."""
        says = self._headers[0].apix
        hint = f" (its header says {says:g}, which is often wrong)" if says else ""
        raise ParticleFileError(
            self.path, f"no pixel size without a ctf.pkl{hint}", "pass --apix with the Å/px of the images"
        )

    def box_sizes(self) -> None:
        """Nothing is said."""
        return None

    def rotation(self) -> Float[np.ndarray, "N 3 3"]:
        """Refuse: an image stack has no poses."""
        raise ParticleFileError(self.path, "an image stack has no poses of its own", "pass --poses pose.pkl")

    def translation(self, apix: Float[np.ndarray, " N"]) -> Float[np.ndarray, "N 2"]:
        """Refuse: an image stack has no poses."""
        raise AssertionError("rotation has refused before")

    def ctf_column(self, name: str) -> Float[np.ndarray, " N"]:
        """Refuse: an image stack has no CTF."""
        raise ParticleFileError(self.path, "an image stack has no CTF of its own", "pass --ctf ctf.pkl, or --no-ctf")

    def aberrations(self) -> list[str]:
        """Nothing is known."""
        return []

    def labels(self) -> Columns:
        """Nothing is known."""
        return single_particles(len(self))


def read_list(path: str) -> tuple[str, ...]:
    """Read the paths of a ``.txt`` list of stacks."""
    try:
        lines = files.read(path, "list of stacks").decode().splitlines()
    except UnicodeDecodeError as error:
        raise ParticleFileError(path, f"this is no list of stacks ({error})", "pass a text file") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise ParticleFileError(path, "it names no stack", "write the path of one .mrcs file a line")
    return names
