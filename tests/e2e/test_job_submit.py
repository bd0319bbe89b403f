"""The commands as Ray jobs against a running head."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from mlflow import MlflowClient
from servers import WAIT_SECONDS, Head, own_head
from trainings import epochs_in, wait_for

from drgn_ray.training.checkpoint import load_position
from drgn_ray.training.run_directory import RunDirectory

REPOSITORY = Path(__file__).parents[2]
NETWORK = "--zdim 2 --enc-dim 32 --enc-layers 1 --dec-dim 32 --dec-layers 1 -n 2 --workers 1 --cpus-per-worker 1"


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with own_head(num_cpus=3) as one:
        yield one


def ray_job(head: Head, verb: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("ray")), "job", verb, "--address", head.dashboard, *words]
    here = head.environment | environment
    return subprocess.run(command, env=here, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False)


def submit(
    head: Head, module: str, *words: str, options: Sequence[str] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    entry = [sys.executable, "-m", f"jobs.{module}", *words]
    return ray_job(head, "submit", *options, "--working-dir", str(REPOSITORY), "--", *entry, **environment)


def own_lines(result: subprocess.CompletedProcess[str]) -> list[str]:
    """What the job itself printed, without the words of ``ray job submit``."""
    lines = [line for line in result.stdout.splitlines() if line.strip()]
    start = next(number for number, line in enumerate(lines) if re.match(r"(job|output) ", line))
    end = len(lines) - next(number for number, line in enumerate(lines[::-1]) if re.match(r"(job|output|run) ", line))
    return lines[start:end]


def test_convert_train_and_analyze_run_as_jobs(head: Head, simulated: Path, tmp_path: Path) -> None:
    store, run = tmp_path / "particles.zarr", tmp_path / "runs" / "job"

    converted = submit(head, "convert", str(simulated), "-o", str(store), "-D", "32")
    assert converted.returncode == 0, converted.stdout + converted.stderr
    assert (
        f"ray job submit --working-dir . -- python -m jobs.train {store} -o {tmp_path}/runs/first" in converted.stdout
    )
    trained = submit(head, "train", str(store), "-o", str(run), "--no-analysis", *NETWORK.split())
    assert trained.returncode == 0, trained.stdout + trained.stderr
    analyzed = submit(head, "analyze", str(run), "--ksample", "3", "--pc", "1")
    assert analyzed.returncode == 0, analyzed.stdout + analyzed.stderr

    assert len(list((run / "analyze.2" / "kmeans3").glob("vol_*.mrc"))) == 3
    place = json.loads((run / "mlflow.json").read_text())
    lines = own_lines(trained)
    for part in (lines[:3], lines[-3:]):
        assert re.fullmatch(r"job +raysubmit_\w+", part[0])
        assert part[1].split() == ["output", str(run)]
        assert place["run_id"] in part[2]
    assert any("epoch 2/2 done" in line for line in lines)


def test_a_job_that_is_stopped_ends_in_order_and_the_same_line_goes_on(
    head: Head, store_path: Path, tmp_path: Path
) -> None:
    run, small = RunDirectory(tmp_path / "runs" / "stopped"), NETWORK.replace("-n 2 ", "").split()
    line = [str(store_path), "-o", str(run.path), "--no-analysis", *small]
    submitted = submit(head, "train", *line, "-n", "10000", options=["--no-wait"])
    (job,) = set(re.findall(r"raysubmit_\w+", submitted.stdout))
    status = lambda: head.ask(f"/api/jobs/{job}")["status"]  # noqa: E731
    wait_for(lambda: len(epochs_in(run)) >= 2, lambda: status() in ("PENDING", "RUNNING"), "two epochs")
    assert ray_job(head, "stop", job).returncode == 0
    assert status() == "STOPPED"
    place = json.loads(run.mlflow_file.read_text())
    assert MlflowClient(place["tracking_uri"]).get_run(place["run_id"]).info.status == "KILLED"
    log = ray_job(head, "logs", job).stdout
    assert log.rstrip().endswith("drgn-ray: interrupted; the same command, given again, finishes it.")

    done = len(load_position(run.checkpoints).history)  # metrics.jsonl may lack the last one's line
    again = submit(head, "train", *line, "-n", str(done + 1))
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"going on at epoch {done + 1}/{done + 1}" in again.stdout
    assert epochs_in(run) == list(range(1, done + 2))
    assert json.loads(run.mlflow_file.read_text()) == place


def test_the_jobs_exit_status_is_the_drivers(head: Head, tmp_path: Path) -> None:
    missing = tmp_path / "missing.zarr"
    result = submit(head, "train", str(missing), "-o", str(tmp_path / "run"))
    assert result.returncode != 0
    assert f"drgn-ray: {missing}: there is no particle store here" in result.stdout + result.stderr
    job = re.search(r"raysubmit_\w+", result.stdout)
    assert job is not None
    assert head.ask(f"/api/jobs/{job[0]}")["driver_exit_code"] == 2


def test_an_output_that_would_vanish_with_the_job_is_refused(head: Head, simulated: Path) -> None:
    result = submit(head, "convert", str(simulated), "-o", "particles.zarr")
    assert result.returncode != 0
    assert "pass an absolute path" in result.stdout + result.stderr


def test_who_has_no_token_is_refused(head: Head, tmp_path: Path) -> None:
    result = submit(head, "train", str(tmp_path / "missing.zarr"), RAY_AUTH_MODE="disabled")
    assert result.returncode != 0
    assert "Unauthorized" in result.stdout + result.stderr
    assert "raysubmit_" not in result.stdout
