"""A table whose rows are shuffled over its stacks is read file by file all the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from star_sets import StarSet, random_set, write_stack

from conversions import table as table_module
from conversions.cryodrgn_run import _read_latents
from conversions.cryodrgn_write import write_pickle
from conversions.inputs import read_particles
from conversions.star import read_star_file
from drgn_ray.particles.store import ParticleStore
from jobs.cli import main


@pytest.fixture
def shuffled(tmp_path: Path) -> StarSet:
    """600 images of three stacks in random order."""
    mixed = random_set(tmp_path / "set", count=600)
    for stack in range(3):
        write_stack(mixed.folder / f"{stack}.mrcs", mixed.images[200 * stack : 200 * (stack + 1)])
    mixed.particles["rlnImageName"] = [f"{row % 200 + 1}@{row // 200}.mrcs" for row in range(600)]
    order = np.random.default_rng(0).permutation(600)
    mixed.particles, mixed.images = mixed.particles.iloc[order].reset_index(drop=True), mixed.images[order]
    return mixed


def converted(star: Path) -> ParticleStore:
    words = ["convert", str(star), "-o", str(star.parent / "x.zarr"), "--workers", "0", "--dtype", "float32"]
    assert main(words) == 0
    return ParticleStore(star.parent / "x.zarr")


def test_a_long_one_is_stored_in_the_order_of_its_files(shuffled: StarSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "MANY_SEEKS", 100)
    store = converted(shuffled.write_table())
    rows = store.columns["source_row"]
    assert sorted(rows) == list(range(600))
    sorted_table = read_particles(str(shuffled.folder / "particles.star")).in_order_of_files()
    assert sorted_table._seeks(np.arange(600)) == 2
    np.testing.assert_array_equal(store.read_images(slice(0, 600)) * store.info.scale, shuffled.images[rows])
    np.testing.assert_allclose(store.columns["defocus_u"], shuffled.particles["rlnDefocusU"][rows], rtol=1e-6)
    assert store.table()["rlnImageName"].to_pylist() == list(shuffled.particles["rlnImageName"][rows])


def test_it_comes_out_in_the_order_it_had(shuffled: StarSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "MANY_SEEKS", 100)
    star = shuffled.write_table()
    output = str(shuffled.folder / "again.star")
    assert main(["export", converted(star).path, "-o", output]) == 0
    for before, after in zip(read_star_file(str(star)).blocks, read_star_file(output).blocks, strict=True):
        assert after.table.equals(before.table)


def test_a_short_one_keeps_its_order(shuffled: StarSet) -> None:
    store = converted(shuffled.write_table())
    np.testing.assert_array_equal(store.columns["source_row"], np.arange(600))


def test_rows_that_the_user_ordered_stay_in_her_order(shuffled: StarSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "MANY_SEEKS", 100)
    order = np.random.default_rng(1).permutation(600)
    np.save(shuffled.folder / "ind.npy", order)
    table = read_particles(str(shuffled.write_table()), ind=str(shuffled.folder / "ind.npy")).in_order_of_files()
    np.testing.assert_array_equal(table.columns["source_row"], order)
    assert not table.in_file_order


def test_a_run_of_cryodrgn_finds_its_particles_in_a_reordered_store(
    shuffled: StarSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """z is in the order of the table, the store in that of the files."""
    monkeypatch.setattr(table_module, "MANY_SEEKS", 100)
    store = converted(shuffled.write_table())
    z = np.arange(600, dtype=np.float32)[:, None]
    write_pickle(shuffled.folder / "z.pkl", z, np.zeros_like(z))
    latents = _read_latents(shuffled.folder / "z.pkl", 1, store, 600)
    np.testing.assert_array_equal(latents.z[:, 0], latents.source_row)
