"""Tilt series as 2-D images: which particle, which tilt, which dose."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
from star_sets import StarSet

from conversions.inputs import read_particles
from conversions.table import ParticleTable


@pytest.fixture(scope="module")
def table(reference_data: Path) -> ParticleTable:
    """72 particles of class D with 8 tilts of 2 e/Å², 72 of class E with 10 tilts of 3 e/Å²."""
    return read_particles(str(reference_data / "empiar10076_sim/10076_both_32_sim.star"), apix=13.1)


def test_images_of_a_particle_share_its_number(table: ParticleTable, reference_data: Path) -> None:
    names = table.tables["table"]["rlnGroupName"].to_numpy()
    particle = table.columns["particle"]
    assert len(np.unique(particle)) == 144
    for number in range(144):
        assert len(set(names[particle == number])) == 1
    labels = pickle.loads((reference_data / "empiar10076_sim/labels_D-0_E-1.pkl").read_bytes())
    np.testing.assert_array_equal(np.bincount(particle), np.where(np.asarray(labels) == 0, 8, 10))


def test_tilts_are_ranked_within_their_particle(table: ParticleTable) -> None:
    for number in range(144):
        ranks = table.columns["tilt_index"][table.columns["particle"] == number]
        assert sorted(ranks) == list(range(len(ranks)))


def test_the_least_damped_tilt_comes_first(table: ParticleTable) -> None:
    scale = table.columns["ctf_scalefactor"]
    for number in range(144):
        mine = table.columns["particle"] == number
        order = np.argsort(table.columns["tilt_index"][mine])
        assert (np.diff(scale[mine][order]) <= 0).all()


def test_of_equally_damped_tilts_that_of_less_dose_comes_first(table: ParticleTable) -> None:
    for number in range(144):
        mine = table.columns["particle"] == number
        assert (np.diff(table.columns["dose"][mine][np.argsort(table.columns["tilt_index"][mine])]) > 0).all()


def test_the_dose_is_that_of_the_simulation(table: ParticleTable) -> None:
    for number, (count, step) in ((0, (8, 2.0)), (143, (10, 3.0))):
        dose = np.sort(table.columns["dose"][table.columns["particle"] == number])
        np.testing.assert_allclose(dose, step * np.arange(1, count + 1))


def test_a_real_tilt_series_is_found(reference_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        table = read_particles(str(reference_data / "fixtures/sta_testing_bin8.star"), apix=15.68)
    assert "tilt series of 6 particles (rlnGroupName)" in caplog.text
    assert len(np.unique(table.columns["particle"])) == 6


def test_groups_of_micrographs_are_no_tilt_series(star_set: StarSet) -> None:
    star_set.particles["rlnGroupName"] = [f"group_{row % 3}" for row in range(20)]
    star_set.particles["rlnCtfScalefactor"] = 1.0
    columns = read_particles(str(star_set.write())).columns
    np.testing.assert_array_equal(columns["particle"], np.arange(20))
    assert not columns["tilt_index"].any()
    assert not columns["dose"].any()


def test_relion_5_says_the_dose_itself(star_set: StarSet) -> None:
    star_set.particles["rlnTomoParticleName"] = [f"tomo/{row // 4}" for row in range(20)]
    star_set.particles["rlnCtfScalefactor"] = np.tile([0.9, 1.0, 0.8, 0.7], 5)
    star_set.particles["rlnMicrographPreExposure"] = np.tile([3.0, 0.0, 6.0, 9.0], 5)
    columns = read_particles(str(star_set.write())).columns
    np.testing.assert_array_equal(columns["tilt_index"], np.tile([1, 0, 2, 3], 5))
    np.testing.assert_array_equal(columns["dose"], np.tile([3.0, 0.0, 6.0, 9.0], 5))


def test_refined_b_factors_are_no_dose(star_set: StarSet) -> None:
    """CtfRefine writes a B factor a particle, positive or negative."""
    star_set.particles["rlnGroupName"] = [f"group_{row % 3}" for row in range(20)]
    star_set.particles["rlnGroupNumber"] = np.arange(20) % 3
    star_set.particles["rlnCtfBfactor"] = np.random.default_rng(0).normal(0, 30, 20)
    columns = read_particles(str(star_set.write())).columns
    np.testing.assert_array_equal(columns["particle"], np.arange(20))
    assert not columns["dose"].any()


def test_relion_5_names_particles_even_of_undamped_images(star_set: StarSet) -> None:
    star_set.particles["rlnTomoParticleName"] = [f"tomo/{row // 4}" for row in range(20)]
    columns = read_particles(str(star_set.write())).columns
    np.testing.assert_array_equal(columns["particle"], np.repeat(np.arange(5), 4))
    np.testing.assert_array_equal(columns["tilt_index"], np.tile(np.arange(4), 5))
