"""A trained run, which tests of several commands look at and leave as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import train_tiny

from drgn_ray.analysis.analyze import analyze
from drgn_ray.distributed.decode import decode_folders
from drgn_ray.training.checkpoint import load_position
from drgn_ray.training.embed import latents_of
from drgn_ray.training.run_directory import RunDirectory


@pytest.fixture(scope="session")
def trained(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run that learned next to nothing, analysed in three clusters."""
    run = RunDirectory(tmp_path_factory.mktemp("run") / "run")
    train_tiny(store_path, run)
    analysis = analyze(latents_of(run), load_position(run.checkpoints), run.analysis(1), ksample=3, num_pcs=1)
    decode_folders(run, analysis.volumes)
    return run
