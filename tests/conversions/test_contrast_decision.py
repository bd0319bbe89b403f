"""Protein is white or dark: the images tell, and the user may say."""

from __future__ import annotations

from pathlib import Path

import pytest
from star_sets import StarSet

from drgn_ray.particles.store import ParticleStore
from jobs.cli import main


def converted(words: list[str], output: Path) -> ParticleStore:
    assert main(["convert", *words, "-o", str(output), "--workers", "0"]) == 0
    return ParticleStore(output)


def test_white_protein_with_a_ctf_is_inverted(adk_whole: ParticleStore) -> None:
    assert adk_whole.info.data_sign == -1
    assert adk_whole.info.contrast.startswith("protein is white: skewness of the consensus of 1000 particles is -")


def test_the_decision_does_not_depend_on_the_box_size(adk_whole: ParticleStore, adk_cropped: ParticleStore) -> None:
    assert adk_cropped.info.data_sign == adk_whole.info.data_sign


def test_two_dozen_images_made_by_relion_are_enough(reference_data: Path, tmp_path: Path) -> None:
    store = converted([str(reference_data / "relion_made/relion_proj_batch.star")], tmp_path / "x.zarr")
    assert store.info.data_sign == -1
    assert store.info.contrast.startswith("protein is white: ")


def test_dark_protein_with_a_ctf_stays_as_it_is(reference_data: Path, tmp_path: Path) -> None:
    star = reference_data / "empiar10076_sim/10076_both_32_sim.star"
    store = converted([str(star), "--apix", "13.1"], tmp_path / "x.zarr")
    assert store.info.data_sign == 1
    assert store.info.contrast.startswith("protein is dark: ")


def test_white_protein_without_ctf_stays_as_it_is(reference_data: Path, tmp_path: Path) -> None:
    words = f"{reference_data}/fixtures/toy_projections.mrcs --poses {reference_data}/fixtures/toy_angles.pkl"
    store = converted([*words.split(), "--no-ctf", "--apix", "1"], tmp_path / "x.zarr")
    assert store.info.data_sign == 1
    assert store.info.contrast.startswith("protein is white: ")


def test_noise_tells_nothing_and_is_taken_as_white(star_set: StarSet, tmp_path: Path) -> None:
    store = converted([str(star_set.write())], tmp_path / "x.zarr")
    assert store.info.data_sign == -1
    assert store.info.contrast.startswith("protein is taken as white, but the data do not tell (skewness")


@pytest.mark.parametrize(("flag", "sign"), [("--invert", -1), ("--no-invert", 1)])
def test_what_the_user_says_goes_before_the_data(flag: str, sign: int, star_set: StarSet, tmp_path: Path) -> None:
    store = converted([str(star_set.write()), flag], tmp_path / "x.zarr")
    assert (store.info.data_sign, store.info.contrast) == (sign, "said by the user")
