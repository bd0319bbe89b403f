"""Particles of several box and pixel sizes are brought to one, and mean the same molecule afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from star_sets import StarSet, random_set, write_stack

from conversions.inputs import read_particles
from drgn_ray.particles import store as store_module
from drgn_ray.particles.store import ParticleStore
from drgn_ray.physics.fourier import fourier_crop, fourier_resample
from jobs.cli import main


def blob(box_size: int, apix: float, centre: tuple[float, float] = (9.0, -14.0), sigma: float = 9.0) -> np.ndarray:
    """A gaussian of width `sigma` at `centre` (x, y), Å from the origin pixel."""
    axis = (np.arange(box_size) - box_size // 2) * apix
    x, y = np.meshgrid(axis, axis)
    return np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * sigma**2))


@pytest.mark.parametrize(("box_size", "apix"), [(40, 3.0), (32, 3.7), (26, 4.31)])
def test_a_resampled_blob_is_the_blob_on_the_new_grid(box_size: int, apix: float) -> None:
    image = torch.tensor(blob(64, 2.0))[None]
    resampled = fourier_resample(image, 2.0, box_size, apix)[0].numpy()
    np.testing.assert_allclose(resampled, blob(box_size, apix), atol=2e-3)


def test_resampling_to_the_same_width_is_fourier_cropping() -> None:
    """But for the Nyquist frequency, which resampling leaves out, and the growth of cropped values."""
    image = torch.tensor(blob(64, 2.0))[None]
    torch.testing.assert_close(4 * fourier_resample(image, 2.0, 32, 4.0), fourier_crop(image, 32), atol=1e-3, rtol=0)


def mixed_set(folder: Path, samplings: list[tuple[int, float]], per_group: int = 4) -> StarSet:
    """Optics groups of images of one blob; a stack each."""
    both = random_set(folder, count=per_group * len(samplings))
    both.particles["rlnImageName"] = [
        f"{number}@group{group}.mrcs" for group in range(len(samplings)) for number in range(1, per_group + 1)
    ]
    both.particles["rlnOpticsGroup"] = np.repeat(np.arange(len(samplings)) + 1, per_group)
    both.optics = pd.concat([both.optics] * len(samplings), ignore_index=True)
    both.optics["rlnOpticsGroup"] = np.arange(len(samplings)) + 1
    both.optics["rlnImagePixelSize"] = [apix for _, apix in samplings]
    both.optics["rlnImageSize"] = [box_size for box_size, _ in samplings]
    for group, (box_size, apix) in enumerate(samplings):
        write_stack(folder / f"group{group}.mrcs", np.tile(blob(box_size, apix).astype(np.float32), (per_group, 1, 1)))
    return both


def converted(star: Path, *words: str) -> ParticleStore:
    output = star.parent / "store.zarr"
    command = ["convert", str(star), "-o", str(output), "--workers", "0", "--no-invert", "--dtype", "float32", *words]
    assert main(command) == 0
    return ParticleStore(output)


@pytest.mark.parametrize(
    "samplings", [[(64, 2.0), (48, 3.0)], [(64, 2.0), (80, 1.7), (60, 2.2)], [(64, 1.24), (64, 1.25)]]
)
def test_images_of_all_groups_show_the_same_blob(samplings: list[tuple[int, float]], tmp_path: Path) -> None:
    store = converted(mixed_set(tmp_path, samplings).write_table())
    narrowest = min(box_size * apix for box_size, apix in samplings)
    assert store.info.box_size * store.info.apix == pytest.approx(narrowest)
    assert store.info.apix >= max(apix for _, apix in samplings) * (1 - 1e-6)
    assert set(store.columns["apix"]) == {np.float32(store.info.apix)}
    images = store.read_images(slice(0, len(store)))
    expected = blob(store.info.box_size, store.info.apix)
    for image in images:
        np.testing.assert_allclose(image / image.max(), expected / expected.max(), atol=0.02)


def test_a_shard_of_one_group_alone_is_brought_to_the_common_size_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "SHARD_BYTES", 1)  # a chunk a shard: 64 images, all of one group
    store = converted(mixed_set(tmp_path, [(64, 2.0), (48, 3.0)], per_group=64).write_table())
    assert store.images.shards is not None
    assert store.images.shards[0] == 64
    expected = blob(store.info.box_size, store.info.apix)
    for image in store.read_images(slice(0, 128)):
        np.testing.assert_allclose(image / image.max(), expected / expected.max(), atol=0.02)


def test_sizes_that_exclude_each_other_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    star = mixed_set(tmp_path, [(64, 0.01), (48, 100.0)]).write_table()
    assert main(["convert", str(star), "-o", str(tmp_path / "x.zarr")]) == 2
    assert "its images have no size in common (48 px of 100 Å, 64 px of 0.01 Å)" in capsys.readouterr().err
    assert main(["inspect", str(star)]) == 0


def test_noise_of_all_groups_has_the_same_spectrum(tmp_path: Path) -> None:
    """RELION normalises noise to variance 1 a pixel, whatever the pixel."""
    samplings = [(64, 2.0), (96, 1.5), (48, 3.0)]
    both = mixed_set(tmp_path, samplings, per_group=200)
    rng = np.random.default_rng(5)
    for group, (box_size, _) in enumerate(samplings):
        write_stack(tmp_path / f"group{group}.mrcs", rng.standard_normal((200, box_size, box_size), np.float32))
    store = converted(both.write_table())
    images = torch.tensor(store.read_images(slice(0, 600)))
    size = store.info.box_size
    power = (torch.fft.rfft2(images).abs() ** 2)[:, 2 : size // 3, 2 : size // 3].mean((1, 2)).reshape(3, 200).mean(1)
    assert (power.max() / power.min()) < 1.05


def test_shifts_and_poses_are_not_touched(tmp_path: Path) -> None:
    both = mixed_set(tmp_path, [(64, 2.0), (48, 3.0)])
    store = converted(both.write_table())
    expected = both.particles[["rlnOriginXAngst", "rlnOriginYAngst"]]
    np.testing.assert_allclose(store.columns["translation"], expected, atol=1e-5)
    assert list(store.columns["source_box_size"]) == [64] * 4 + [48] * 4
    np.testing.assert_allclose(store.columns["source_apix"], [2.0] * 4 + [3.0] * 4)


def test_no_group_is_blown_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    star = mixed_set(tmp_path, [(64, 2.0), (48, 3.0)]).write_table()
    assert main(["convert", str(star), "-o", str(tmp_path / "x.zarr"), "-D", "64"]) == 2
    assert f"-D 64: the images of {star} hold 42 px; pass an even number up to 42." in capsys.readouterr().err


def test_pixel_sizes_that_differ_by_rounding_are_one(tmp_path: Path) -> None:
    both = mixed_set(tmp_path, [(64, 2.0), (64, 2.00001)])
    assert len(read_particles(str(both.write_table())).samplings) == 1


def test_a_table_for_other_images_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As after cryodrgn downsample, when the STAR file is the old one."""
    both = mixed_set(tmp_path, [(64, 2.0)])
    both.optics["rlnImageSize"] = 128
    star = both.write_table()
    assert main(["convert", str(star), "-o", str(tmp_path / "x.zarr")]) == 2
    assert f"{star}, row 0: it says 128 px, but the images of {tmp_path}/group0.mrcs have 64; pass --apix" in (
        capsys.readouterr().err
    )
    assert main(["convert", str(star), "-o", str(tmp_path / "x.zarr"), "--apix", "4", "--workers", "0"]) == 0
