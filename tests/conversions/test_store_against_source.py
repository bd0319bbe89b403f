"""What is in a converted store is what was in its source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import starfile
from star_sets import StarSet, read_stack, relion_matrix

from drgn_ray.particles.store import ParticleStore
from jobs.cli import main

HALF_ULP = 2.0**-11  # of float16
FROM_PARTICLES = {
    "defocus_u": "rlnDefocusU",
    "defocus_v": "rlnDefocusV",
    "defocus_angle": "rlnDefocusAngle",
    "phase_shift": "rlnPhaseShift",
    "half_set": "rlnRandomSubset",
    "optics_group": "rlnOpticsGroup",
}
FROM_OPTICS = {"voltage": 300.0, "cs": 2.7, "amplitude_contrast": 0.1}


def hartley(images: np.ndarray) -> np.ndarray:
    spectrum = np.fft.fftshift(np.fft.fft2(np.fft.fftshift(images, axes=(1, 2))), axes=(1, 2))
    return spectrum.real - spectrum.imag


def fourier_cropped(images: np.ndarray, box_size: int) -> np.ndarray:
    """Transform, cut out the centre, transform back."""
    start = (images.shape[-1] - box_size) // 2
    centre = slice(start, start + box_size)
    return hartley(hartley(images)[:, centre, centre]) / box_size**2


@pytest.fixture(scope="module")
def adk_images(adk_star: Path) -> np.ndarray:
    return read_stack(adk_star.with_suffix(".mrcs"))


@pytest.fixture(scope="module")
def adk_particles(adk_star: Path) -> pd.DataFrame:
    return starfile.read(adk_star)["particles"]


@pytest.fixture(params=["adk_whole", "adk_cropped"])
def adk_store(request: pytest.FixtureRequest) -> ParticleStore:
    return request.getfixturevalue(request.param)


def test_a_store_of_the_source_box_holds_the_source_pixels(adk_whole: ParticleStore, adk_images: np.ndarray) -> None:
    stored = adk_whole.read_images(slice(0, 5000)).astype(np.float32) * adk_whole.info.scale
    np.testing.assert_array_equal(stored, adk_images.astype(np.float32))


@pytest.mark.parametrize("start", range(0, 5000, 1000))
def test_a_smaller_store_holds_a_fourier_crop_to_float16(
    adk_cropped: ParticleStore, adk_images: np.ndarray, start: int
) -> None:
    rows = slice(start, start + 1000)
    expected = fourier_cropped(adk_images[rows].astype(np.float64), 32)
    error = np.abs(adk_cropped.read_images(rows) * adk_cropped.info.scale - expected)
    float32_transform = 1e-6 * expected.std()
    assert (error <= HALF_ULP * np.abs(expected) + float32_transform).all()


@pytest.mark.parametrize(
    ("words", "reference"),
    [
        ("fixtures/relion31.star -D 64", "relion31_D64.mrcs"),
        (
            "fixtures/toy_projections.mrcs --poses fixtures/toy_angles.pkl --no-ctf --apix 1 -D 16",
            "toy_D16.mrcs",
        ),
    ],
)
def test_a_smaller_store_holds_what_cryodrgn_downsample_writes(
    words: str, reference: str, reference_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(reference_data)
    output = tmp_path / "small.zarr"
    assert main(["convert", *words.split(), "-o", str(output), "--dtype", "float32", "--workers", "0"]) == 0
    store = ParticleStore(output)
    expected = read_stack(reference_data / "reference" / reference)
    stored = store.read_images(slice(0, len(store))) * store.info.scale
    np.testing.assert_allclose(stored, expected, rtol=0, atol=1e-5 * expected.std())


def test_poses_land_in_the_store(adk_store: ParticleStore, adk_particles: pd.DataFrame) -> None:
    angles = (adk_particles[f"rlnAngle{axis}"].to_numpy() for axis in ("Rot", "Tilt", "Psi"))
    np.testing.assert_allclose(adk_store.columns["rotation"], relion_matrix(*angles), rtol=0, atol=1e-6)
    shifts = adk_particles[["rlnOriginXAngst", "rlnOriginYAngst"]]
    box_angstrom = 64 * 1.5
    np.testing.assert_allclose(adk_store.columns["translation"], shifts, rtol=0, atol=1e-6 * box_angstrom)


@pytest.mark.parametrize(("ours", "relion"), FROM_PARTICLES.items())
def test_columns_of_the_particles_land_in_the_store(
    adk_store: ParticleStore, adk_particles: pd.DataFrame, ours: str, relion: str
) -> None:
    np.testing.assert_allclose(adk_store.columns[ours], adk_particles[relion], rtol=1e-6)


@pytest.mark.parametrize(("name", "value"), FROM_OPTICS.items())
def test_columns_of_the_optics_group_land_in_every_row(adk_store: ParticleStore, name: str, value: float) -> None:
    np.testing.assert_allclose(adk_store.columns[name], np.full(5000, value), rtol=1e-6)


def test_the_pixel_size_grows_as_the_box_shrinks(adk_whole: ParticleStore, adk_cropped: ParticleStore) -> None:
    assert (adk_whole.info.apix, adk_cropped.info.apix) == (1.5, 3.0)
    assert set(adk_whole.columns["apix"]) == {1.5}
    assert set(adk_cropped.columns["apix"]) == {3.0}


def test_rows_stay_in_the_order_of_the_source(adk_store: ParticleStore) -> None:
    np.testing.assert_array_equal(adk_store.columns["source_row"], np.arange(5000))


def test_the_original_tables_are_kept_with_all_their_columns(adk_store: ParticleStore, adk_star: Path) -> None:
    original = starfile.read(adk_star)
    for name, block in (("table", "particles"), ("optics", "optics")):
        kept = adk_store.table(name).to_pandas()
        assert list(kept) == list(original[block])
        for column in kept:
            assert (kept[column].astype(original[block][column].dtype) == original[block][column]).all(), column


def test_blank_images_are_stored_as_they_are(star_set: StarSet, tmp_path: Path) -> None:
    """Zarr leaves out shards that are all zero, and reads them as zeros."""
    star_set.images[:] = 0
    assert main(["convert", str(star_set.write()), "-o", str(tmp_path / "blank.zarr"), "--workers", "0"]) == 0
    assert not ParticleStore(tmp_path / "blank.zarr").read_images(slice(0, 20)).any()


def test_the_store_says_what_it_came_from(adk_cropped: ParticleStore, adk_star: Path) -> None:
    star, stack, *_ = adk_cropped.info.sources
    assert (star["path"], star["bytes"]) == (str(adk_star), adk_star.stat().st_size)
    assert stack["path"] == str(adk_star.with_suffix(".mrcs"))
    assert adk_cropped.info.command.startswith(f"drgn-ray convert {adk_star} -o ")


def test_images_of_several_stacks_land_in_the_order_of_the_table(reference_data: Path, tmp_path: Path) -> None:
    stacks = reference_data / "fixtures/toy_datadir"
    table = pd.DataFrame(
        {
            "rlnImageName": [f"{60 - i}@toy_images_{'ab'[i % 2]}.mrcs" for i in range(60)],
            "rlnAngleRot": 0.0,
            "rlnAngleTilt": np.linspace(0, 180, 60),
            "rlnAnglePsi": 0.0,
            "rlnImagePixelSize": 1.0,
        }
    )
    starfile.write({"particles": table}, tmp_path / "mixed.star")
    words = f"convert {tmp_path}/mixed.star --datadir {stacks} --no-ctf --dtype float32 --workers 0"
    assert main([*words.split(), "-o", str(tmp_path / "mixed.zarr")]) == 0
    store = ParticleStore(tmp_path / "mixed.zarr")
    images = [read_stack(stacks / f"toy_images_{name}.mrcs")[59::-1] for name in "ab"]
    expected = [images[i % 2][i] for i in range(60)]
    np.testing.assert_array_equal(store.read_images(slice(0, 60)) * store.info.scale, expected)
