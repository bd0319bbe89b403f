"""Conversion as Ray tasks."""

from __future__ import annotations

from pathlib import Path

import pytest
from star_sets import files_of

from drgn_ray.particles import store as store_module
from jobs.cli import main


def test_a_store_written_on_ray_is_the_same_bit_by_bit(
    two_cpus: None, simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "SHARD_BYTES", 64 * 32 * 32 * 2)
    written = []
    for name, workers in (("here", "0"), ("on_ray", "2")):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        output = str(tmp_path / name / "particles.zarr")
        assert main(["convert", str(simulated), "-o", output, "-D", "32", "--workers", workers]) == 0
        files = files_of(Path(output))
        del files["zarr.json"]  # its command names the output
        written.append(files)
    assert written[0] == written[1]
    assert sum(name.startswith("images/c/") for name in written[0]) == 5
