"""A run says how it came about, and does it again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from drgn_ray.particles.store import ParticleStore
from jobs.cli import main

SETTINGS = "--zdim 2 --enc-dim 16 --enc-layers 1 --dec-dim 16 --dec-layers 1 --pe-dim 4 -n 1 --workers 0 --no-analysis"


def test_the_script_of_a_run_trains_the_same_again_to_the_bit(
    store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["train", str(store_path), "-o", str(tmp_path / "first"), "--seed", "3", *SETTINGS.split()]) == 0
    script = tmp_path / "first" / "reproduce.sh"
    assert ParticleStore(store_path).info.table_sha256 in script.read_text()
    program = Path(sys.executable).parent  # where drgn-ray is
    environment = os.environ | {"PATH": f"{program}:{os.environ['PATH']}"}
    subprocess.run(["bash", str(script), str(tmp_path / "again")], check=True, env=environment)
    first, again = (
        load_file(next((tmp_path / run / "checkpoints").iterdir()) / "model.safetensors") for run in ("first", "again")
    )
    assert first.keys() == again.keys()
    assert all(first[name].equal(again[name]) for name in first)
    assert subprocess.run(["bash", str(script)], capture_output=True, check=False).returncode != 0
