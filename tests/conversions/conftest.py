"""Particle sets and stores that the conversion tests share."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import own_ray
from star_sets import Refused, StarSet, random_set

from drgn_ray.particles.store import ParticleStore
from jobs.cli import main


@pytest.fixture
def star_set(tmp_path: Path) -> StarSet:
    """20 random images of 16 px, not yet written."""
    return random_set(tmp_path / "set")


@pytest.fixture(scope="session")
def adk_star(reference_data: Path) -> Path:
    """5,000 particles of 64 px made by other programs."""
    return reference_data / "adk_sim" / "particles.star"


@pytest.fixture(scope="session")
def adk_whole(adk_star: Path, tmp_path_factory: pytest.TempPathFactory) -> ParticleStore:
    """They, converted at their own box size."""
    path = tmp_path_factory.mktemp("adk") / "64.zarr"
    assert main(["convert", str(adk_star), "-o", str(path), "--workers", "0"]) == 0
    return ParticleStore(path)


@pytest.fixture(scope="session")
def adk_cropped(adk_star: Path, tmp_path_factory: pytest.TempPathFactory) -> ParticleStore:
    """They, converted at 32 px."""
    path = tmp_path_factory.mktemp("adk") / "32.zarr"
    assert main(["convert", str(adk_star), "-o", str(path), "-D", "32", "--workers", "0"]) == 0
    return ParticleStore(path)


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Convert, check that it is refused in one sentence and leaves nothing behind; return the sentence."""

    def convert(source: Path, *words: str) -> str:
        output = tmp_path / "refused.zarr"
        capsys.readouterr()
        with warnings.catch_warnings(record=True) as warned:
            assert main(["convert", str(source), "-o", str(output), "--workers", "0", *words]) == 2
        assert [str(warning.message) for warning in warned] == []
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert not output.exists()
        return lines[0].removeprefix("drgn-ray: ")

    return convert


@pytest.fixture
def two_cpus() -> Iterator[None]:
    """Ray on this machine with two logical CPUs."""
    import ray

    if ray.is_initialized():
        yield
        return
    with own_ray(2):
        yield
