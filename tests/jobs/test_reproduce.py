"""A run says how it came about, and does it again."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from mlflow import MlflowClient
from safetensors.torch import load_file

from drgn_ray.particles.store import ParticleStore
from drgn_ray.tracking.run import ERROR
from jobs.cli import main

SETTINGS = "--zdim 2 --enc-dim 16 --enc-layers 1 --dec-dim 16 --dec-layers 1 --pe-dim 4 -n 1 --workers 0 --no-analysis"


def test_the_script_of_a_run_trains_the_same_again_to_the_bit(
    store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["train", str(store_path), "-o", str(tmp_path / "first"), "--seed", "3", *SETTINGS.split()]) == 0
    script = tmp_path / "first" / "reproduce.sh"
    store = ParticleStore(store_path)
    assert store.info.table_sha256 in script.read_text()
    assert store.digest in script.read_text()
    program = Path(sys.executable).parent  # where drgn-ray is
    environment = os.environ | {"PATH": f"{program}:{os.environ['PATH']}"}
    subprocess.run(["bash", str(script), str(tmp_path / "again")], check=True, env=environment)
    first, again = (
        load_file(next((tmp_path / run / "checkpoints").iterdir()) / "model.safetensors") for run in ("first", "again")
    )
    assert first.keys() == again.keys()
    assert all(first[name].equal(again[name]) for name in first)
    assert subprocess.run(["bash", str(script)], capture_output=True, check=False).returncode != 0


def test_mlflow_lists_the_particles_of_a_run_its_versions_and_its_command(
    store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    words = ["-m", "jobs.train", str(store_path), "-o", str(tmp_path / "run"), *SETTINGS.split()]
    subprocess.run([sys.executable, *words, "-n", "1"], check=True, env=environment, capture_output=True)
    place = json.loads((tmp_path / "run" / "mlflow.json").read_text())
    client = MlflowClient(place["tracking_uri"])
    client.set_tag(place["run_id"], ERROR, "KeyboardInterrupt")
    job = {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"metadata": {"job_submission_id": "raysubmit_2"}})}
    subprocess.run([sys.executable, *words, "-n", "2"], check=True, env=environment | job, capture_output=True)
    run = client.get_run(place["run_id"])
    assert ERROR not in run.data.tags  # how the command before ended is the past
    assert run.data.tags["drgn_ray.job"] == "raysubmit_2"
    digest = ParticleStore(store_path).digest
    assert [(each.dataset.name, each.dataset.digest) for each in run.inputs.dataset_inputs] == [
        (store_path.name, digest[:36])
    ]
    assert run.data.tags["drgn_ray.store_digest"] == digest
    assert run.data.tags["drgn_ray.command"] == shlex.join(["python", *words, "-n", "2"])
    for package in ("torch", "numpy", "ray", "zarr"):
        assert f"{package} {version(package)}" in run.data.tags["drgn_ray.versions"]
