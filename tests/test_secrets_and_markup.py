"""Passwords get into no file and no log; what data are called is text in the pages that show it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from drgn_ray.analysis.sweep_figures import parallel_coordinates
from drgn_ray.config import RunConfig
from drgn_ray.errors import ConfigError
from drgn_ray.text import as_cell, refuse_secrets
from drgn_ray.training.sweep import Distribution, Trial
from jobs.cli import main

NETWORK = "--zdim 2 --enc-dim 16 --enc-layers 1 --dec-dim 16 --dec-layers 1 -n 1 --workers 0 --no-analysis".split()
HOSTILE = "</script><img src=x onerror=alert(1)>|[a](javascript:alert(1))"


@pytest.mark.parametrize(
    "address",
    [
        "http://me:hunter2@mlflow.example:5000",
        "postgresql://me:hunter2@10.0.0.5/mlflow",
        "https://host/x.star?X-Amz-Date=1&X-Amz-Signature=hunter2",
        "https://host/x.star?sig=hunter2&v=1",
    ],
)
def test_an_address_with_a_secret_is_refused_without_repeating_it(address: str) -> None:
    with pytest.raises(ConfigError, match="it holds a secret") as refused:
        refuse_secrets(address, "take it out")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("address", ["s3://bucket/x.zarr", "http://10.0.0.5:5000", "/data/a:b@c?key", "sqlite:////a"])
def test_other_addresses_are_no_secret(address: str) -> None:
    refuse_secrets(address, "take it out")


@pytest.mark.parametrize("command", ["train", "convert", "inspect"])
def test_no_command_writes_a_secret_down(
    command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    source = f"https://me:hunter2@127.0.0.1:9/x.{'zarr' if command == 'train' else 'star'}"
    output = [] if command == "inspect" else ["-o", str(tmp_path / "out")]
    assert main([command, source, *output]) == 2
    assert_nowhere("hunter2", tmp_path, capfd, caplog)


def test_a_run_keeps_no_password_of_its_tracking_server(
    store_path: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@127.0.0.1:9")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    assert main(["train", str(store_path), "-o", str(tmp_path / "a"), *NETWORK]) == 2
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert main(["train", str(store_path), "-o", str(tmp_path / "a"), *NETWORK]) == 0
    assert (tmp_path / "a" / "reproduce.sh").exists()
    assert_nowhere("hunter2", tmp_path, capfd, caplog)


def assert_nowhere(
    secret: str, folder: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    captured = capfd.readouterr()
    assert secret not in captured.out + captured.err + caplog.text
    assert [file for file in folder.rglob("*") if file.is_file() and secret.encode() in file.read_bytes()] == []


def test_markup_in_a_tables_cell_is_text() -> None:
    assert as_cell(HOSTILE) == "&lt;/script>&lt;img src=x onerror=alert(1)>\\|\\[a](javascript:alert(1))"
    assert as_cell("two\nlines") == "two lines"
    assert as_cell("trial_01") == "trial_01"


def test_names_of_settings_cannot_leave_their_script_in_a_sweeps_figure() -> None:
    space = {"size": Distribution.model_validate({"choice": {HOSTILE: {"model.zdim": 2}, "b": {"model.zdim": 4}}})}
    table = pd.DataFrame({"trial": [HOSTILE, "b"], "gain": [1.0, 2.0]})
    trials = [Trial(name, {"size": name}, RunConfig()) for name in (HOSTILE, "b")]
    page = parallel_coordinates(table, trials, space).to_html(include_plotlyjs=False)
    assert "onerror" in page
    assert "<img" not in page
    assert HOSTILE not in page
