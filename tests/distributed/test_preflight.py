"""What machines say of themselves is judged as a person would; on a laptop nothing is started for it."""

from __future__ import annotations

import logging
import shutil
from functools import partial
from pathlib import Path

import pytest
import ray

from drgn_ray.config import ResourcesConfig
from drgn_ray.distributed import preflight as checks
from drgn_ray.distributed.preflight import Machine, examine, preflight
from drgn_ray.distributed.trainer import plan_resources
from drgn_ray.errors import ResourceError

WELL = Machine("a", {"ray": "2.60", "torch": "2.13"}, "token", 1, 1, 8 << 30, 4 << 30, 0.5, "", None)
PLAN = partial(plan_resources, ResourcesConfig())


def test_a_healthy_laptop_hears_nothing(
    store_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(checks, "MOST_USED", 1.0)  # whatever the disk of the tests
    monkeypatch.setattr(checks, "LEAST_FREE", 1)
    monkeypatch.setattr(checks, "LEAST_SHARED", 1)
    with caplog.at_level(logging.INFO):
        preflight(str(store_path), tmp_path / "runs" / "a", PLAN, 2)
    assert caplog.records == []
    assert not ray.is_initialized()
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_misses_a_shard_is_refused(
    store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    broken = tmp_path / "broken.zarr"
    shutil.copytree(store_path, broken)
    shutil.rmtree(broken / "images" / "c" / "0")
    with pytest.raises(ResourceError, match=r"store: .*its file images/c/0/0/0 is missing; convert again"):
        preflight(str(broken), tmp_path, PLAN, 2)


def test_workers_that_do_not_fit_are_refused_with_what_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (cpus, *_) = examine(None, None, partial(plan_resources, ResourcesConfig(num_workers=3, cpus_per_worker=1)), 2)
    assert cpus.remedy == "pass at most 1"


def test_a_folder_that_cannot_be_made_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = {each.what: each for each in examine(None, Path("/proc/runs"), PLAN, 2)}
    assert found["runs"].said == "/proc cannot be written to"
    assert found["runs"].remedy


def test_other_software_is_named_with_its_machine() -> None:
    other = WELL._replace(name="b", versions={"ray": "2.60", "torch": "2.12"})
    assert checks.versions([WELL, WELL]).remedy is None
    assert checks.versions([WELL, other]).said == "torch 2.12 not 2.13 on b"
    assert checks.versions([WELL, other]).remedy


def test_what_only_slows_down_does_not_stop() -> None:
    small = WELL._replace(name="b", shared_memory=64 << 20)
    full = WELL._replace(name="b", disk_used=0.97)
    for found in (checks.shared_memory([WELL, small]), checks.ray_disk([WELL, full])):
        assert found.said.endswith(" on b")
        assert found.remedy
        assert not found.stops


def test_the_same_trouble_of_several_machines_is_said_once() -> None:
    sick = [WELL._replace(name=name, seen_gpus=0) for name in "bc"]
    assert checks.gpus([WELL, *sick]).said == "Ray counts 1 GPU and torch sees 0 on b and c"


def test_authentication_is_to_be_said_on_every_machine() -> None:
    silent = WELL._replace(name="b", auth_mode="not said")
    assert checks.auth_mode([WELL, WELL]).remedy is None
    for machines in ([WELL, silent], [silent, silent]):
        assert checks.auth_mode(machines).remedy


def test_a_folder_of_the_same_name_on_another_disk_is_found_out(tmp_path: Path) -> None:
    found = checks.folder_shared([WELL, WELL._replace(name="b")], ["b"], tmp_path)
    assert found.said == f"{tmp_path}: what it writes is not seen here on b"
    assert found.remedy
