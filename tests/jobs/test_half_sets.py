"""``drgn-ray train --half-sets`` trains on each half of the particles and compares what they tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from drgn_ray.particles.store import ParticleStore
from drgn_ray.training.embed import latents_of
from drgn_ray.training.loop import particle_order
from drgn_ray.training.run_directory import RunDirectory
from jobs.cli import main

SETTINGS = ("--model", "linear", "--zdim", "2", "--workers", "0", "--half-sets")


def test_two_runs_see_other_particles_and_are_compared_on_all(
    store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["train", str(store_path), "-o", str(tmp_path / "a"), *SETTINGS]) == 0
    halves, store = [RunDirectory(tmp_path / f"a_half{half}") for half in (1, 2)], ParticleStore(store_path)
    chunks = [particle_order(run.config(), store).chunks() for run in halves]
    assert not np.intersect1d(*chunks).size
    for run in halves:
        assert np.array_equal(latents_of(run).source_row, np.arange(len(store)))
    pair = pd.read_csv(tmp_path / "a_halves" / "comparison.csv").loc[0]
    assert (pair["first"], pair["second"]) == ("a_half1", "a_half2")
    assert pair["dimensions_above_permuted"] >= 1  # the turning arm and the cap are no noise
    assert (tmp_path / "a_halves" / "comparison.md").is_file()
    assert (tmp_path / "mlflow.db").is_file()


@pytest.mark.parametrize("words", [["--no-analysis"], ["--half-set", "1"]])
def test_what_cannot_be_compared_is_refused(
    words: list[str], store_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(store_path), "-o", str(tmp_path / "a"), *SETTINGS, *words]) == 2
    said = f"{words[0]} with --half-sets: both halves' latents are compared; leave {words[0]} out."
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_in_the_place_of_the_comparison_is_left_alone(
    store_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a_halves").mkdir()
    (tmp_path / "a_halves" / "config.yaml").write_text("")
    assert main(["train", str(store_path), "-o", str(tmp_path / "a"), *SETTINGS]) == 2
    assert "a_halves: a run is here" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a_halves"]
