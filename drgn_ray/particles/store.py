"""Reading and writing ``particles.zarr`` (Zarr v3, sharded, crc32c on every chunk).

The attributes hold a digest of themselves and of every small file that has no checksum of its own.

A store is whole when its attribute ``complete`` is true, which is written last.  Until then the records in
``progress/`` say which shards are done, so that a conversion that was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from jaxtyping import Float, Shaped
from zarr.abc.store import ByteRequest, Store
from zarr.codecs import Crc32cCodec
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from drgn_ray.errors import StoreAwayError, StoreError
from drgn_ray.particles.schema import COLUMN, COLUMNS
from drgn_ray.patience import patiently
from drgn_ray.text import KEYS_ELSEWHERE, refuse_secrets

FORMAT, FORMAT_VERSION = "drgn_ray.particles", 2
CHUNK_BYTES, SHARD_BYTES = 1 << 21, 1 << 25
_PREPARED = "prepared"
_WITHOUT_CHECKSUM = ("zarr.json", ".parquet")  # how the names of files end; of chunks Zarr checks the crc32c
_WRITE_ZEROS: Any = {"write_empty_chunks": True}  # else an image of zeros is a missing file


@dataclass(frozen=True)
class StoreInfo:
    """What the attributes of a store say.

    Attributes
    ----------
    box_size
        D, px.
    apix
        Median Å/px of the stored images.
    scale
        A stored value times `scale` is the Fourier-cropped value of the source; a power of two, so exact.
    hartley_std
        Standard deviation of the Hartley values of the stored images (up to 1,000 of them), DC included.
    data_sign
        -1 where protein is white, +1 where it is dark; multiplies images so that density comes out positive.
    contrast
        How `data_sign` was decided.
    has_ctf
        False where images carry no CTF.
    table_sha256
        Checksum of all columns and of where every image lies in the sources.
    sources
        Files the particles came from: path, bytes, modification time, and for tables the SHA-256.
    num_source_rows
        Rows of the source table, of which `num_particles` were kept.
    in_file_order
        Whether the particles were put in the order of their image files, not of the table.
    command
        The call that made the store, for the error that asks to finish it.
    """

    num_particles: int
    box_size: int
    apix: float
    dtype: str
    scale: float
    hartley_std: float
    data_sign: int
    contrast: str
    has_ctf: bool
    table_sha256: str
    sources: list[dict[str, Any]]
    num_source_rows: int
    in_file_order: bool
    command: str


def chunk_and_shard(num_particles: int, box_size: int, dtype: str) -> tuple[int, int]:
    """Images a chunk (16 to 64, about 2 MiB) and a shard (about 32 MiB, a multiple of the chunk)."""
    image_bytes = box_size**2 * np.dtype(dtype).itemsize
    chunk = int(np.clip(CHUNK_BYTES // image_bytes, 16, 64))
    shard = max(SHARD_BYTES // image_bytes // chunk, 1) * chunk
    return chunk, min(shard, -(-num_particles // chunk) * chunk)


class StoreWriter:
    """Writes a store shard by shard; each shard has one writer and is written whole.

    Parameters
    ----------
    path
        A local path or an fsspec URL.
    """

    def __init__(self, path: str) -> None:
        self.path = str(path)
        refuse_secrets(self.path, KEYS_ELSEWHERE)
        self.filesystem, self.root = fsspec.core.url_to_fs(self.path)

    def create(
        self, info: StoreInfo, columns: Mapping[str, Shaped[np.ndarray, " N *row"]], tables: Mapping[str, pa.Table]
    ) -> None:
        """Write everything but the images: arrays' metadata, the columns, the original tables."""
        chunk, shard = chunk_and_shard(info.num_particles, info.box_size, info.dtype)
        attributes = {"format": FORMAT, "format_version": FORMAT_VERSION, "complete": False, **asdict(info)}
        group = zarr.create_group(self.path, overwrite=True, zarr_format=3, attributes=_sealed(attributes))
        side = info.box_size
        group.create_array(
            "images",
            shape=(info.num_particles, side, side),
            chunks=(chunk, side, side),
            shards=(shard, side, side),
            dtype=info.dtype,
            compressors=[Crc32cCodec()],
            config=_WRITE_ZEROS,
        )
        for column in COLUMNS:
            data = np.ascontiguousarray(columns[column.name], dtype=column.dtype)
            assert data.shape == (info.num_particles, *column.shape), (column.name, data.shape)
            array = group.create_array(
                column.name,
                shape=data.shape,
                dtype=data.dtype,
                chunks=data.shape,
                compressors=[Crc32cCodec()],
                config=_WRITE_ZEROS,
            )
            array[...] = data
            array.attrs["unit"] = column.unit
        for name, table in tables.items():
            with self.filesystem.open(f"{self.root}/{name}.parquet", "wb") as file:
                pq.write_table(table, file)
        self.filesystem.makedirs(f"{self.root}/progress", exist_ok=True)
        self.filesystem.touch(f"{self.root}/progress/{_PREPARED}")

    def is_free(self) -> bool:
        """Whether nothing is at this path, or an empty folder."""
        return not self.filesystem.exists(self.root) or (
            self.filesystem.isdir(self.root) and not self.filesystem.ls(self.root)
        )

    def is_store(self) -> bool:
        """Whether a particle store is here, finished or not."""
        attributes = _attributes(self.path)
        return attributes is not None and attributes.get("format") == FORMAT

    def unfinished_info(self) -> StoreInfo | None:
        """Read the settings of an unfinished store at this path; None if there is none."""
        attributes = _attributes(self.path)
        if attributes is None or attributes.get("format") != FORMAT or attributes.get("complete"):
            return None
        if not _is_sealed(attributes):
            raise StoreError(self.path, "its file zarr.json is damaged", "pass --overwrite to begin again")
        return _info(attributes)

    @property
    def is_prepared(self) -> bool:
        """Whether `create` came to its end, so that only shards are to be written."""
        return self.filesystem.exists(f"{self.root}/progress/{_PREPARED}")

    @cached_property
    def _images(self) -> zarr.Array:
        return zarr.open_array(f"{self.path}/images", mode="r+", config=_WRITE_ZEROS)

    @property
    def num_shards(self) -> int:
        """Shards of the image array."""
        return -(-self._images.shape[0] // self._shard_size)

    @property
    def _shard_size(self) -> int:
        assert self._images.shards is not None
        return self._images.shards[0]

    def shard_rows(self, shard: int) -> range:
        """Rows of a shard."""
        return range(shard * self._shard_size, min((shard + 1) * self._shard_size, self._images.shape[0]))

    def write_shard(self, shard: int, images: Float[np.ndarray, "n D D"]) -> None:
        """Write all images of a shard and its record."""
        rows = self.shard_rows(shard)
        assert len(images) == len(rows), (len(images), rows)
        file = f"{self.root}/images/c/{shard}/0/0"
        if self.filesystem.exists(file):  # of a writer that died: Zarr would read it to fill up a short last shard
            self.filesystem.rm(file)
        self._images[rows.start : rows.stop] = images
        self.filesystem.touch(f"{self.root}/progress/{shard:06d}.done")

    def pending_shards(self) -> list[int]:
        """Shards without a record."""
        self.filesystem.invalidate_cache()  # the records are written by other processes
        done = {int(os.path.basename(f)[:6]) for f in self.filesystem.glob(f"{self.root}/progress/*.done")}
        return [shard for shard in range(self.num_shards) if shard not in done]

    def finish(self) -> None:
        """Write the list of files and the completion mark; the records go."""
        assert not self.pending_shards()
        for left_over in self.filesystem.glob(f"{self.root}/**/*.partial"):  # of a writer that was killed
            self.filesystem.rm(left_over)
        files = _data_files(self.path)
        digests = {
            name: hashlib.sha256(self.filesystem.cat_file(f"{self.root}/{name}")).hexdigest()
            for name in files
            if name.endswith(_WITHOUT_CHECKSUM)
        }
        attributes = zarr.open_group(self.path, mode="r+").attrs
        attributes.update(_sealed({**attributes, "files": files, "sha256": digests, "complete": True}))
        self.filesystem.rm(f"{self.root}/progress", recursive=True)


class ParticleStore:
    """A whole store, opened for reading.

    Attributes
    ----------
    info
        What it was made with.
    digest
        SHA-256 of its settings, sources, tables and the sizes of its files; images have checksums of their own.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        refuse_secrets(self.path, KEYS_ELSEWHERE)
        attributes = _attributes(self.path)
        if attributes is None and os.path.exists(self.path):
            attributes = _attributes(self.path)  # storage may have come back just now
        if attributes is None and os.path.exists(self.path):
            raise StoreError(self.path, "this is not a particle store", "pass one that `drgn-ray convert` made")
        if attributes is None:
            make_it = f"make one with `drgn-ray convert particles.star -o {self.path} -D 128`"
            raise StoreAwayError(self.path, "there is no particle store here", make_it)
        if attributes.get("format") != FORMAT or attributes.get("format_version") != FORMAT_VERSION:
            raise StoreError(
                self.path,
                f"this Zarr group is not a particle store of version {FORMAT_VERSION}"
                f" (format {attributes.get('format')!r}, version {attributes.get('format_version')!r})",
                "convert the particles again with this version of drgn-ray",
            )
        if not _is_sealed(attributes):
            again = "convert the particles again with --overwrite"
            raise StoreError(self.path, "its file zarr.json is damaged", again)
        self.info, self.digest = _info(attributes), str(attributes["seal"])
        if not attributes.get("complete"):
            raise StoreError(self.path, "its conversion did not finish", f"finish it with `{self.info.command}`")
        self._files, self._digests = attributes["files"], attributes["sha256"]
        self._check_files()
        self._read_checked("images/zarr.json")
        self._zarr = _Whole(zarr.open_group(self.path, mode="r").store, self._files)
        try:
            self.images = zarr.open_array(self._zarr, path="images", mode="r")
        except (ValueError, KeyError, TypeError) as error:  # whatever damaged metadata makes of Zarr
            raise self._damaged(f"its images/zarr.json is damaged ({error})") from error

    def _check_files(self) -> None:
        """Check presence and size of every file: Zarr would read a missing one as zeros."""
        found = _data_files(self.path)
        for name, size in self._files.items():
            present = found.get(name)
            if present != size:
                if present is None:
                    raise StoreAwayError(self.path, f"its file {name} is missing", self._again)
                raise self._damaged(f"its file {name} has {present} bytes, not {size}")
        for name in found:
            if name not in self._files and "/." not in f"/{name}":  # hidden ones are of file managers
                raise StoreError(self.path, f"the file {name} is no part of it", "take that file away")

    def _read_checked(self, name: str) -> bytes:
        """Read a small file, or a table, and compare it with its digest (of stores that have them)."""
        filesystem, root = fsspec.core.url_to_fs(self.path)
        content = filesystem.cat_file(f"{root}/{name}")
        if name in self._digests and hashlib.sha256(content).hexdigest() != self._digests[name]:
            raise self._damaged(f"its file {name} is damaged")
        return content

    def check_unchanged(self) -> None:
        """Refuse to go on with a store that is another by now; storage that fails is waited for (`drgn_ray.patience`).

        Raises
        ------
        StoreError
            It was converted anew since it was opened.
        """

        def seal() -> object:
            try:
                attributes = _attributes(self.path)
            except StoreAwayError as error:  # of storage that is reached by a network
                raise OSError(str(error)) from error
            if attributes is None:
                raise OSError("there is no particle store here")
            return attributes.get("seal")

        if patiently(self.path, seal) != self.digest:
            again = "bring back what was here, or train on what is here now in another -o"
            raise StoreError(self.path, "it was converted anew meanwhile", again)

    def _damaged(self, what: str) -> StoreError:
        return StoreError(self.path, what, self._again)

    @property
    def _again(self) -> str:
        return f"convert again: `{self.info.command} --overwrite`"

    def __len__(self) -> int:
        return self.info.num_particles

    @property
    def absolute_path(self) -> str:
        """The path as other working directories can use it; URLs stay as they are."""
        return self.path if "://" in self.path else os.path.abspath(self.path)

    @property
    def chunk_size(self) -> int:
        """Images a chunk, the unit of reading."""
        return self.images.chunks[0]

    @property
    def num_chunks(self) -> int:
        """Chunks, the last of which may be short."""
        return -(-len(self) // self.chunk_size)

    def chunk_rows(self, chunk: int) -> slice:
        """Rows of a chunk."""
        return slice(chunk * self.chunk_size, min((chunk + 1) * self.chunk_size, len(self)))

    def read_images(self, rows: slice) -> Float[np.ndarray, "n D D"]:
        """Images of consecutive rows, as stored; storage that fails is waited for (`drgn_ray.patience`)."""
        return patiently(self.path, lambda: self._read_images(rows))

    def _read_images(self, rows: slice) -> Float[np.ndarray, "n D D"]:
        try:
            return np.asarray(self.images[rows])
        except ValueError as error:  # zarr's word for a checksum that does not match
            raise self._damaged(f"rows {rows.start} to {rows.stop} are damaged ({error})") from error

    @cached_property
    def columns(self) -> dict[str, Shaped[np.ndarray, " N *row"]]:
        """All columns of `drgn_ray.particles.schema` (about 100 bytes a particle)."""
        return {name: self._column(name) for name in COLUMN}

    @cached_property
    def has_damping(self) -> bool:
        """Whether images differ in CTF scale factor or dose, as those of tilt series do."""
        # These two alone: networks are loaded where the other columns are not needed.
        return bool((self._column("ctf_scalefactor") != 1).any() or self._column("dose").any())

    def _column(self, name: str) -> Shaped[np.ndarray, " N *row"]:
        return patiently(self.path, lambda: self._read_column(name))

    def _read_column(self, name: str) -> Shaped[np.ndarray, " N *row"]:
        self._read_checked(f"{name}/zarr.json")
        try:
            return np.asarray(zarr.open_array(self._zarr, path=name, mode="r")[...])
        except ValueError as error:
            raise self._damaged(f"its column {name} is damaged ({error})") from error

    def read(self, rows: slice) -> dict[str, Shaped[np.ndarray, " n *row"]]:
        """Images and columns of consecutive rows."""
        return {"images": self.read_images(rows), **{name: column[rows] for name, column in self.columns.items()}}

    def table(self, name: str = "table") -> pa.Table:
        """Read an original table (or another block of its file), untouched; "table" has the rows that were kept."""
        return pq.read_table(pa.BufferReader(self._read_checked(f"{name}.parquet")))

    def tables(self) -> dict[str, pa.Table]:
        """Read all original tables by name."""
        names = [name.removesuffix(".parquet") for name in self._files if name.endswith(".parquet")]
        return {name: self.table(name) for name in names}


class _Whole(WrapperStore[Store]):
    """A store of which these files are known: where one of them is away, that is an error, and not zeros.

    Others may be missing: Zarr writes no shard of zeros.
    """

    def __init__(self, store: Store, files: Container[str]) -> None:
        super().__init__(store)
        self._files = files

    def _with_store(self, store: Store) -> _Whole:
        return _Whole(store, self._files)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """See `Store`."""
        found = await super().get(key, prototype, byte_range)
        if found is None and key in self._files:
            raise FileNotFoundError(f"{key} is not there")
        return found


def reopen(path: str) -> ParticleStore:
    """Open a store that was there a while ago; storage that fails is waited for (`drgn_ray.patience`)."""

    def attempt() -> ParticleStore:
        try:
            return ParticleStore(path)
        except StoreAwayError as error:
            raise OSError(str(error)) from error

    return patiently(path, attempt)


def _attributes(path: str) -> dict[str, Any] | None:
    try:
        return dict(zarr.open_group(path, mode="r").attrs)
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError):  # what is no zarr.json of Zarr's
        return None
    except Exception as error:
        if "://" not in path:
            raise
        found = f"its storage does not answer ({' '.join(str(error).split())})"
        raise StoreAwayError(path, found, "check the address and your credentials for it") from error


def read_info(path: str) -> StoreInfo | None:
    """Read the settings of a store, whole or not; None if there is none of this version."""
    attributes = _attributes(path)
    if attributes is None or (attributes.get("format"), attributes.get("format_version")) != (FORMAT, FORMAT_VERSION):
        return None
    return _info(attributes)


def _seal(attributes: Mapping[str, Any]) -> str:
    content = {name: value for name, value in attributes.items() if name != "seal"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sealed(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes with a digest of them, since Zarr keeps no checksum of its ``zarr.json``."""
    return {**attributes, "seal": _seal(attributes)}


def _is_sealed(attributes: Mapping[str, Any]) -> bool:
    """Whether the attributes are as they were written."""
    return attributes.get("seal") == _seal(attributes)


def _info(attributes: Mapping[str, Any]) -> StoreInfo:
    return StoreInfo(**{name: attributes[name] for name in StoreInfo.__dataclass_fields__})


def _data_files(path: str) -> dict[str, int]:
    """Bytes of every file but the group's own metadata and the records of progress, by its path in the store."""
    filesystem, root = fsspec.core.url_to_fs(path)
    filesystem.invalidate_cache()
    listed = filesystem.find(root, detail=True)
    named = {name.removeprefix(f"{root}/"): entry["size"] for name, entry in listed.items()}
    return {
        name: size for name, size in sorted(named.items()) if name != "zarr.json" and not name.startswith("progress/")
    }
