"""The files of docs/clusters.md: what a program that is here can check of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.scripts.scripts import start

from jobs.train import _parse

REPOSITORY = Path(__file__).parents[2]
RECIPES = REPOSITORY / "docs" / "clusters"


def test_the_slurm_script_starts_ray_on_every_node_and_trains_on_all_gpus(tmp_path: Path) -> None:
    symmetric_run = pytest.importorskip("ray.scripts.symmetric_run")
    (tmp_path / "srun").write_text(
        '#!/bin/sh\nprintf "%s\\n" "$@"\nstat -c %a "$RAY_AUTH_TOKEN_PATH"\n'
    )  # what SLURM has
    (tmp_path / "srun").chmod(0o755)
    here = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    here |= {"DRGN_RAY_ENV": sys.prefix, "MLFLOW_TRACKING_URI": "http://10.0.0.5:5000", "SLURM_JOB_ID": "7"}
    here |= {"SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "32"}
    command = ["bash", str(RECIPES / "slurm.sbatch"), "/shared/my particles.zarr", "/shared/runs/a", "--zdim", "4"]
    done = subprocess.run(command, env=here, capture_output=True, text=True, check=True)
    *words, mode = done.stdout.splitlines()
    assert mode == "600"  # of the token
    assert not list(tmp_path.glob(".drgn_ray_token*"))

    ours = words.index("ray")
    assert words[ours + 1] == "symmetric-run"
    entry = words.index("--")
    kept = symmetric_run.curate_and_validate_ray_start_args(words[ours + 2 : entry])
    symmetric_run.symmetric_run.make_context("symmetric-run", words[ours + 2 :])
    start.make_context("start", [*kept, "--head"])  # raises where Ray knows no such flag
    assert kept == ["--num-cpus", "32", "--num-gpus", "4"]
    assert words[entry + 1] == "env"
    assert re.fullmatch(r"RAY_ADDRESS=[\d.]+:6379", words[entry + 2])
    assert words[entry + 3 : entry + 6] == ["python", "-m", "jobs.train"]
    training = _parse(words[entry + 6 :])
    assert (training.run.particles, training.outdir) == ("/shared/my particles.zarr", "/shared/runs/a")
    assert (training.run.resources.num_workers, training.run.model.zdim) == (8, 4)


def test_the_rayjob_has_what_kuberay_asks_for() -> None:
    volume, job = yaml.safe_load_all((RECIPES / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    for pods in (cluster["headGroupSpec"], workers):
        pod = pods["template"]["spec"]
        claims = {name(each): each["persistentVolumeClaim"]["claimName"] for each in pod["volumes"][:1]}
        assert claims == {"shared": volume["metadata"]["name"]}
        assert pod["volumes"][1] == {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "20Gi"}}
        (container,) = pod["containers"]
        assert {each["mountPath"] for each in container["volumeMounts"]} == {"/shared", "/dev/shm"}
        assert pod["securityContext"]["runAsNonRoot"]

    module, *words = job["spec"]["entrypoint"].removeprefix("python -m ").split()
    assert module == "jobs.train"
    gpus = workers["replicas"] * int(
        workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    )
    assert _parse(words).run.resources.num_workers == gpus


def name(described: dict[str, Any]) -> str:
    return described["name"]


def test_the_container_holds_all_of_the_package() -> None:
    lines = (REPOSITORY / "Containerfile").read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]}
    wheel = (REPOSITORY / "pyproject.toml").read_text()
    assert copied >= {"pyproject.toml", *re.findall(r'"(\w+)"', wheel.partition("\npackages = ")[2].splitlines()[0])}
    assert all((REPOSITORY / each).exists() for each in copied)
    assert {f"!{each}" for each in copied} <= set((REPOSITORY / ".dockerignore").read_text().splitlines())
    last_user = [line for line in lines if line.startswith("USER ")][-1]
    assert last_user != "USER root"
