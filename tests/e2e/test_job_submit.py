"""The commands as Ray jobs against a running head."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray.job_submission import JobSubmissionClient
from servers import free_ports

REPOSITORY = Path(__file__).parents[2]
NETWORK = "--zdim 2 --enc-dim 32 --enc-layers 1 --dec-dim 32 --dec-layers 1 -n 2 --workers 1 --cpus-per-worker 1"


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """A real head of its own on loopback; gives the address jobs are submitted to."""
    port, dashboard, client, agent = free_ports(4)
    folder = tempfile.mkdtemp(prefix="dr_", dir="/tmp")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [
        *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--node-ip-address", "127.0.0.1"),
        *("--port", str(port), "--dashboard-port", str(dashboard), "--dashboard-host", "127.0.0.1"),
        *("--ray-client-server-port", str(client), "--dashboard-agent-listen-port", str(agent)),
        *("--num-cpus", "3", "--temp-dir", folder),
    ]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{dashboard}"
    os.environ["RAY_AUTH_MODE"] = "disabled"
    deadline = time.monotonic() + 90
    while True:
        try:
            JobSubmissionClient(address).list_jobs()
            break
        except Exception:  # noqa: BLE001  whatever a server that is still starting answers
            assert process.poll() is None, "the head ended"
            assert time.monotonic() < deadline, "the head did not come up"
            time.sleep(0.5)
    yield address
    its_own = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    process.terminate()
    for straggler in psutil.wait_procs(its_own, timeout=5)[1]:
        straggler.kill()
    process.wait()
    del os.environ["RAY_AUTH_MODE"]
    shutil.rmtree(folder, ignore_errors=True)


def submit(head: str, module: str, *words: str) -> subprocess.CompletedProcess[str]:
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "job", "submit", "--address", head, "--working-dir", str(REPOSITORY), "--"]
    entry = [sys.executable, "-m", f"jobs.{module}", *words]
    return subprocess.run([*command, *entry], capture_output=True, text=True, timeout=300, check=False)


def own_lines(result: subprocess.CompletedProcess[str]) -> list[str]:
    """What the job itself printed, without the words of ``ray job submit``."""
    lines = [line for line in result.stdout.splitlines() if line.strip()]
    start = next(number for number, line in enumerate(lines) if re.match(r"(job|output) ", line))
    end = len(lines) - next(number for number, line in enumerate(lines[::-1]) if re.match(r"(job|output|run) ", line))
    return lines[start:end]


def test_convert_train_and_analyze_run_as_jobs(head: str, simulated: Path, tmp_path: Path) -> None:
    store, run = tmp_path / "particles.zarr", tmp_path / "runs" / "job"

    converted = submit(head, "convert", str(simulated), "-o", str(store), "-D", "32")
    assert converted.returncode == 0, converted.stdout + converted.stderr
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


def test_the_jobs_exit_status_is_the_drivers(head: str, tmp_path: Path) -> None:
    missing = tmp_path / "missing.zarr"
    result = submit(head, "train", str(missing), "-o", str(tmp_path / "run"))
    assert result.returncode != 0
    assert f"drgn-ray: {missing}: there is no particle store here" in result.stdout + result.stderr
    job = re.search(r"raysubmit_\w+", result.stdout)
    assert job is not None
    assert JobSubmissionClient(head).get_job_info(job[0]).driver_exit_code == 2


def test_an_output_that_would_vanish_with_the_job_is_refused(head: str, simulated: Path) -> None:
    result = submit(head, "convert", str(simulated), "-o", "particles.zarr")
    assert result.returncode != 0
    assert "pass an absolute path" in result.stdout + result.stderr
