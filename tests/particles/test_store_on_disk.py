"""A store is read as it was written, or refused with the reason."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numbered_store import COMMAND, NUM_PARTICLES, write_numbered

from drgn_ray.errors import StoreError
from drgn_ray.particles.schema import COLUMNS, Column
from drgn_ray.particles.store import CHUNK_BYTES, SHARD_BYTES, ParticleStore, chunk_and_shard

AGAIN = f"convert again: `{COMMAND} --overwrite`."


def flip_a_bit(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


class TestReading:
    """What was written is read."""

    def test_images_are_those_written(self, numbered: ParticleStore) -> None:
        images = numbered.read_images(slice(0, NUM_PARTICLES))
        assert (images == np.arange(NUM_PARTICLES)[:, None, None]).all()

    def test_rows_across_shards_are_read_together(self, numbered: ParticleStore) -> None:
        rows = numbered.read(slice(250, 520))
        assert rows["images"][:, 0, 0].tolist() == list(range(250, 520))
        assert rows["source_row"].tolist() == list(range(500, 1040, 2))

    @pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.name)
    def test_columns_have_the_shape_and_type_of_the_schema(self, numbered: ParticleStore, column: Column) -> None:
        values = numbered.columns[column.name]
        assert values.shape == (NUM_PARTICLES, *column.shape)
        assert values.dtype == column.dtype

    def test_every_column_says_its_unit(self, numbered_path: Path) -> None:
        units = {name: zarr.open_array(numbered_path / name, mode="r").attrs["unit"] for name in ("defocus_u", "cs")}
        assert units == {"defocus_u": "Å", "cs": "mm"}

    def test_the_table_is_kept(self, numbered: ParticleStore) -> None:
        assert numbered.table()["name"].to_pylist() == [f"particle {number}" for number in range(NUM_PARTICLES)]

    def test_other_programs_read_the_images_as_plain_zarr(self, numbered_path: Path) -> None:
        images = zarr.open_group(numbered_path, mode="r")["images"]
        assert images.shape == (NUM_PARTICLES, 8, 8)
        assert images[777, 3, 3] == 777

    def test_a_relative_path_is_made_absolute_for_other_processes(
        self, numbered_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(numbered_path.parent)
        assert ParticleStore(numbered_path.name).absolute_path == str(numbered_path)

    def test_a_file_url_is_as_good_as_a_path(self, numbered_path: Path) -> None:
        store = ParticleStore(f"file://{numbered_path}")
        assert store.read_images(slice(300, 301))[0, 0, 0] == 300
        assert store.absolute_path == f"file://{numbered_path}"

    def test_a_moved_store_is_the_same_store(self, numbered_path: Path, tmp_path: Path) -> None:
        moved = ParticleStore(shutil.move(numbered_path, tmp_path / "elsewhere.zarr"))
        assert moved.read_images(slice(999, 1000))[0, 0, 0] == 999


class TestRefusal:
    """What cannot be read as it was written."""

    @pytest.mark.parametrize("position", [0, 4000, -1], ids=["first byte", "middle", "index of the shard"])
    def test_a_flipped_bit_in_a_shard_is_refused(self, numbered_path: Path, position: int) -> None:
        flip_a_bit(numbered_path / "images/c/1/0/0", position)
        store = ParticleStore(numbered_path)
        with pytest.raises(StoreError, match=r"numbered\.zarr: rows 256 to 320 are damaged") as refused:
            store.read_images(slice(256, 320))
        assert str(refused.value).endswith(AGAIN)

    def test_rows_beside_the_damage_are_still_read(self, numbered_path: Path) -> None:
        flip_a_bit(numbered_path / "images/c/1/0/0", 0)
        assert ParticleStore(numbered_path).read_images(slice(320, 330))[0, 0, 0] == 320

    def test_a_missing_shard_is_refused(self, numbered_path: Path) -> None:
        """Zarr would read it as zeros."""
        (numbered_path / "images/c/2/0/0").unlink()
        with pytest.raises(StoreError) as refused:
            ParticleStore(numbered_path)
        assert str(refused.value) == f"{numbered_path}: its file images/c/2/0/0 is missing; {AGAIN}"

    def test_a_shard_of_another_size_is_refused(self, numbered_path: Path) -> None:
        shard = numbered_path / "images/c/3/0/0"
        size = shard.stat().st_size
        os.truncate(shard, size - 100)
        with pytest.raises(StoreError) as refused:
            ParticleStore(numbered_path)
        expected = f"{numbered_path}: its file images/c/3/0/0 has {size - 100} bytes, not {size}; {AGAIN}"
        assert str(refused.value) == expected

    @pytest.mark.parametrize("column", ["rotation", "defocus_u", "source_row"])
    def test_a_flipped_bit_in_a_column_is_refused(self, numbered_path: Path, column: str) -> None:
        (chunk,) = (path for path in (numbered_path / column / "c").rglob("*") if path.is_file())
        flip_a_bit(chunk, 100)
        with pytest.raises(StoreError, match=column):
            _ = ParticleStore(numbered_path).columns

    @pytest.mark.parametrize("column", ["rotation", "defocus_u", "source_row"])
    def test_a_missing_column_is_refused(self, numbered_path: Path, column: str) -> None:
        """Zarr would read it as zeros: no defocus, or all particles in one orientation."""
        shutil.rmtree(numbered_path / column / "c")
        with pytest.raises(StoreError, match=column):
            _ = ParticleStore(numbered_path).columns

    def test_an_unfinished_store_is_refused_with_the_command_that_finishes_it(
        self, small_shards: None, tmp_path: Path
    ) -> None:
        write_numbered(tmp_path / "half.zarr", shards=[0, 2])
        with pytest.raises(StoreError) as refused:
            ParticleStore(tmp_path / "half.zarr")
        expected = f"{tmp_path}/half.zarr: its conversion did not finish; finish it with `{COMMAND}`."
        assert str(refused.value) == expected

    def test_all_shards_without_the_mark_are_not_a_store(self, small_shards: None, tmp_path: Path) -> None:
        write_numbered(tmp_path / "nearly.zarr")
        with pytest.raises(StoreError, match="did not finish"):
            ParticleStore(tmp_path / "nearly.zarr")

    def test_a_store_with_shards_to_come_cannot_be_marked_whole(self, small_shards: None, tmp_path: Path) -> None:
        writer = write_numbered(tmp_path / "half.zarr", shards=[0, 2])
        assert writer.pending_shards() == [1, 3]
        with pytest.raises(AssertionError):
            writer.finish()

    def test_a_path_with_nothing_there_says_how_to_make_a_store(self, tmp_path: Path) -> None:
        path = tmp_path / "nowhere.zarr"
        with pytest.raises(StoreError) as refused:
            ParticleStore(path)
        assert str(refused.value) == (
            f"{path}: there is no particle store here; "
            f"make one with `drgn-ray convert particles.star -o {path} -D 128`."
        )

    @pytest.mark.parametrize(
        "make",
        [
            lambda path: path.mkdir(),
            lambda path: path.write_text("text"),
            lambda path: zarr.open_array(path, mode="w", shape=(3,), dtype="f4"),
        ],
        ids=["folder", "file", "array"],
    )
    def test_something_else_is_not_a_store(self, make: Callable[[Path], object], tmp_path: Path) -> None:
        make(tmp_path / "other")
        with pytest.raises(StoreError, match=r"other: this is not a particle store; pass one that `drgn-ray convert"):
            ParticleStore(tmp_path / "other")

    def test_another_zarr_group_is_not_a_store(self, tmp_path: Path) -> None:
        zarr.open_group(tmp_path / "other.zarr", mode="w").attrs["format"] = "ome"
        with pytest.raises(StoreError, match=r"not a particle store of version 2 \(format 'ome', version None\)"):
            ParticleStore(tmp_path / "other.zarr")

    def test_a_store_of_a_later_version_is_refused(self, numbered_path: Path) -> None:
        attributes = json.loads((numbered_path / "zarr.json").read_text())
        attributes["attributes"]["format_version"] = 3
        (numbered_path / "zarr.json").write_text(json.dumps(attributes))
        with pytest.raises(StoreError, match="convert the particles again with this version of drgn-ray"):
            ParticleStore(numbered_path)


class TestLayout:
    """Chunks are what is read at once, shards are what one task writes."""

    LAYOUTS = given(
        st.integers(1, 10_000_000),
        st.integers(1, 512).map(lambda half: 2 * half),
        st.sampled_from(["float16", "float32"]),
    )

    @LAYOUTS
    def test_a_chunk_holds_16_to_64_images(self, num_particles: int, box_size: int, dtype: str) -> None:
        chunk, _ = chunk_and_shard(num_particles, box_size, dtype)
        assert 16 <= chunk <= 64

    @LAYOUTS
    def test_a_chunk_is_about_2_mib_where_images_allow_it(self, num_particles: int, box_size: int, dtype: str) -> None:
        chunk, _ = chunk_and_shard(num_particles, box_size, dtype)
        image_bytes = box_size**2 * np.dtype(dtype).itemsize
        assert chunk == 16 or chunk * image_bytes <= CHUNK_BYTES
        assert chunk == 64 or (chunk + 1) * image_bytes > CHUNK_BYTES

    @LAYOUTS
    def test_a_shard_is_whole_chunks_and_at_most_32_mib(self, num_particles: int, box_size: int, dtype: str) -> None:
        chunk, shard = chunk_and_shard(num_particles, box_size, dtype)
        assert shard % chunk == 0
        assert shard == chunk or shard * box_size**2 * np.dtype(dtype).itemsize <= SHARD_BYTES

    @LAYOUTS
    def test_a_shard_is_no_larger_than_the_set_needs(self, num_particles: int, box_size: int, dtype: str) -> None:
        chunk, shard = chunk_and_shard(num_particles, box_size, dtype)
        assert shard - chunk < num_particles

    def test_a_large_set_has_shards_of_about_32_mib(self) -> None:
        _, shard = chunk_and_shard(1_000_000, 128, "float16")
        assert 16 << 20 < shard * 128 * 128 * 2 <= 32 << 20
