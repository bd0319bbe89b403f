"""MRC stacks in every mode that holds real images, read in any order."""

from __future__ import annotations

import tempfile
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from star_sets import write_stack

from conversions import mrcs

MODES = {0: np.int8, 1: np.int16, 2: np.float32, 6: np.uint16, 12: np.float16}


def some_images(dtype: type, count: int = 9, side: int = 8) -> np.ndarray:
    values = np.random.default_rng(0).uniform(0, 100, (count, side, side))
    return (values - (50 if np.dtype(dtype).kind != "u" else 0)).astype(dtype)


def read_all(path: Path, order: list[int] | None = None) -> np.ndarray:
    header = mrcs.read_header(str(path))
    index_of = np.arange(header.num_images) if order is None else np.array(order)
    return mrcs.read_images((header,), np.zeros(len(index_of), np.int64), index_of)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_values_written(mode: int, tmp_path: Path) -> None:
    images = some_images(MODES[mode])
    path = write_stack(tmp_path / "stack.mrcs", images)
    assert mrcfile.open(path, header_only=True).header.mode == mode
    np.testing.assert_array_equal(read_all(path), images.astype(np.float32))


@pytest.mark.parametrize("mode", MODES)
def test_big_endian_stacks_are_read(mode: int, tmp_path: Path) -> None:
    images = some_images(MODES[mode])
    with mrcfile.new(tmp_path / "stack.mrcs") as file:
        file.set_data(images.astype(images.dtype.newbyteorder(">")))
        file.set_image_stack()
    np.testing.assert_array_equal(read_all(tmp_path / "stack.mrcs"), images.astype(np.float32))


def test_bytes_that_imod_wrote_unsigned_are_unsigned(tmp_path: Path) -> None:
    images = np.arange(2 * 64, dtype=np.uint8).reshape(2, 8, 8) + 100
    path = write_stack(tmp_path / "stack.mrcs", images.view(np.int8))
    assert read_all(path).min() < 0
    with open(path, "r+b") as file:
        file.seek(152)
        file.write(np.array([1146047817, 0], "<i4").tobytes())
    np.testing.assert_array_equal(read_all(path), images)


def test_images_begin_after_an_extended_header(tmp_path: Path) -> None:
    images = some_images(np.float32)
    with mrcfile.new(tmp_path / "stack.mrcs") as file:
        file.set_data(images)
        file.set_image_stack()
        file.set_extended_header(np.arange(300, dtype=np.int32))
    np.testing.assert_array_equal(read_all(tmp_path / "stack.mrcs"), images)


def test_a_stack_may_be_called_mrc(tmp_path: Path) -> None:
    images = some_images(np.float32)
    np.testing.assert_array_equal(read_all(write_stack(tmp_path / "stack.mrc", images)), images)


@settings(max_examples=50, deadline=None)
@given(
    wanted=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 8)), min_size=1, max_size=40),
    gap_bytes=st.sampled_from([0, 3 * 8 * 8 * 4, mrcs.GAP_BYTES]),
    run_bytes=st.sampled_from([1, 2 * 8 * 8 * 4, mrcs.RUN_BYTES]),
)
def test_any_images_of_several_stacks_come_in_the_order_asked_for(
    wanted: list[tuple[int, int]], gap_bytes: int, run_bytes: int
) -> None:
    images = np.random.default_rng(1).standard_normal((2, 9, 8, 8), np.float32)
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(mrcs, "GAP_BYTES", gap_bytes)
        patch.setattr(mrcs, "RUN_BYTES", run_bytes)
        stacks = [mrcs.read_header(str(write_stack(Path(name) / f"{i}.mrcs", images[i]))) for i in range(2)]
        stack_of, index_of = np.array(wanted).T
        np.testing.assert_array_equal(mrcs.read_images(stacks, stack_of, index_of), images[stack_of, index_of])
