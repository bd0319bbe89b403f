"""README's first command: simulate, convert, train on Ray, analyse, and agree with the truth."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import mrcfile
import pytest
from servers import WAIT_SECONDS


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and printed words of a demo."""
    folder = tmp_path_factory.mktemp("demo")
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-m", "jobs.demo", "-o", str(folder / "demo")]
    result = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=4 * WAIT_SECONDS, check=False
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return folder / "demo", result.stdout


def printed_number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found is not None, text
    return float(found[1])


def test_the_latent_space_tells_the_motion_and_the_composition(demo: tuple[Path, str]) -> None:
    text = demo[1]
    assert printed_number(r"turning arm .*: ([\d.]+) \(chance", text) > 0.8
    assert printed_number(r"cap on or off .* for ([\d.]+)% of", text) > 90


def test_the_volumes_are_nearer_to_the_truth_than_one_average(demo: tuple[Path, str]) -> None:
    text = demo[1]
    own = printed_number(r"volumes .* true ones: ([\d.]+)", text)
    assert own > printed_number(r"one average volume for all: ([\d.]+)", text) + 0.02


def test_the_volumes_have_the_right_voxel_size(demo: tuple[Path, str]) -> None:
    with mrcfile.open(next(demo[0].glob("runs/first/analyze.*/kmeans20/vol_000.mrc"))) as file:
        assert file.data.shape == (32, 32, 32)
        assert float(file.voxel_size.x) == pytest.approx(6.0)


def test_the_link_opens_the_machine_learning_view(demo: tuple[Path, str]) -> None:
    assert re.search(
        r"run +http://127\.0\.0\.1:5000/#/experiments/\d+/runs/\w+\?workflowType=machine_learning", demo[1]
    )


def test_mlflow_has_metrics_montages_latents_figures_volumes_and_the_note(demo: tuple[Path, str]) -> None:
    from mlflow import MlflowClient

    from drgn_ray.tracking.run import TrackedRun
    from drgn_ray.training.run_directory import RunDirectory

    tracked = TrackedRun(RunDirectory(demo[0] / "runs" / "first"))
    client = MlflowClient(tracked.uri)
    run = client.get_run(tracked.run_id)
    assert run.info.status == "FINISHED"
    assert {"train_epoch/loss", "val/loss", "latent/active_dims"} <= set(run.data.metrics)
    assert run.data.params["zdim"] == "4"
    note = run.data.tags["mlflow.note.content"]
    assert "drgn-ray decode" in note
    assert re.search(r"FSC with the back-projections of 8 states.* model 0\.\d+, one volume for all 0\.\d+[,;]", note)
    top = {entry.path for entry in client.list_artifacts(tracked.run_id)}
    assert {"latents.npz", "latents.parquet", "config.yaml", "images"} <= top
    analysis = next(path for path in top if path.startswith("analyze."))
    assert f"{analysis}/z_pca.png" in {entry.path for entry in client.list_artifacts(tracked.run_id, analysis)}
    volumes = client.list_artifacts(tracked.run_id, f"{analysis}/kmeans20")
    assert sum(entry.path.endswith(".mrc") for entry in volumes) == 20
