"""The console script: help, wrong calls, and mistakes as one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from servers import WAIT_SECONDS

from drgn_ray.training.run_directory import RunDirectory
from jobs.cli import COMMANDS, main


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"drgn-ray {name}" in capsys.readouterr().out


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert set(COMMANDS) <= set(capsys.readouterr().out.split())


def test_help_needs_no_heavy_import() -> None:
    code = (
        "import sys, jobs.cli; jobs.cli.main(['--help']); print({'torch', 'ray', 'mlflow', 'tyro'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "set()"


def test_an_unknown_command_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "there is no command 'trian'; type one of: demo, convert" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["train", "missing.zarr", "-o", "run"],
            "missing.zarr: there is no particle store here; make one with `drgn-ray",
        ),
        (
            ["train", "-o", "run"],
            "-o run: there is no run here to go on with, and no particle store is named; pass one",
        ),
        (["convert", "missing.star", "-o", "a.zarr"], "missing.star: there is no such STAR file; check the path"),
        (
            ["convert", "particles.tif", "-o", "a.zarr"],
            "particles.tif: its name ends in none of .star, .cs, .mrcs, .mrc, .txt; pass",
        ),
        (["analyze", "nowhere"], "nowhere: there is no run here (no config.yaml); pass the -o directory"),
        (["embed", "nowhere"], "nowhere: there is no run here (no config.yaml); pass the -o directory"),
        (["decode", "nowhere", "-o", "volumes", "-z", "0"], "nowhere: there is no run here"),
        (
            ["train", "a.zarr", "-o", "b", "--zdim", "-3"],
            "settings: --zdim -3: input should be greater than or equal to 0",
        ),
        (
            ["train", "a.zarr", "-o", "b", "--model", "linear", "--enc-dim", "5"],
            "settings: a linear model has no --enc-dim",
        ),
        (["ui", "nowhere"], "nowhere: no runs are tracked here (no mlflow.db); pass the folder"),
    ],
)
def test_a_mistake_is_one_sentence_without_traceback(
    words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir()), "a refused call left something behind"


def test_yaml_settings_are_taken_and_flags_go_before_them(tmp_path: Path) -> None:
    from jobs.train import _parse

    (tmp_path / "run.yaml").write_text("model: {zdim: 3, enc_dim: 64}\ntraining: {lr: 0.001}\n")
    settings = _parse(["a.zarr", "-o", "run", "--config", str(tmp_path / "run.yaml"), "--zdim", "5"]).run
    assert (settings.model.zdim, settings.model.enc_dim, settings.training.lr) == (5, 64, 0.001)


def test_a_run_goes_on_with_its_settings_when_it_alone_is_named(
    store_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(tmp_path / "runs" / "a")
    small = "--zdim 2 --enc-dim 16 --dec-dim 16 --workers 0 -n 1".split()
    assert main(["train", str(store_path), "-o", str(run.path), "--no-analysis", *small]) == 0
    capsys.readouterr()
    assert main(["train", "-o", str(run.path), "--no-analysis", "-n", "2"]) == 0
    assert "going on at epoch 2/2" in capsys.readouterr().out
    assert (run.config().model.zdim, run.config().num_epochs) == (2, 2)
    assert main(["train", "-o", str(run.path), "--zdim", "4"]) == 2
    assert "a run with other settings is here (zdim was 2 and is now 4)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("model: {zdmi: 3}", "model.zdmi = 3: extra inputs are not permitted"),
        ("model: {zdim: -1}", "model.zdim = -1: "),
    ],
)
def test_a_wrong_yaml_key_is_named(text: str, found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(text)
    assert main(["train", "a.zarr", "-o", "run", "--config", str(tmp_path / "run.yaml")]) == 2
    assert f"run.yaml: {found}" in capsys.readouterr().err


def test_a_refused_training_leaves_no_run_behind(
    store_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs" / "a"
    assert main(["train", str(store_path), "-o", str(run), "--workers", "3"]) == 2
    assert "--batch-size 16: it cannot be shared equally by 3 workers; pass a multiple of 3." in capsys.readouterr().err
    assert not run.exists()


def test_a_run_below_a_file_is_refused(store_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes").write_text("mine")
    assert main(["train", str(store_path), "-o", str(tmp_path / "notes" / "a")]) == 2
    assert "/notes/a: there is a file where a folder should be; pass the name of a folder." in capsys.readouterr().err


def test_a_ray_that_cannot_start_is_one_sentence(store_path: Path, tmp_path: Path) -> None:
    long = tmp_path / ("long" * 30)
    long.mkdir()
    environment = os.environ | {"RAY_TMPDIR": str(long)}  # longer than names of sockets may be
    command = [sys.executable, "-m", "jobs.train", str(store_path), "-o", str(tmp_path / "a"), "--workers", "1"]
    tried = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=WAIT_SECONDS)
    assert tried.returncode == 2
    (line,) = tried.stderr.splitlines()
    assert line.startswith("drgn-ray: Ray: it cannot start on this machine (")
    assert line.endswith("see what is wrong there; RAY_TMPDIR names another folder for Ray's files.")


def test_waiting_for_gpus_without_ray_is_refused(
    store_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(store_path), "-o", str(tmp_path / "a"), "--workers", "0", "--await-gpus"]) == 2
    assert "--await-gpus: it is of networks that Ray trains; leave it out, or pass" in capsys.readouterr().err


def test_a_tracking_server_that_is_not_there_is_one_sentence(
    store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # the discard port, where nothing listens
    assert main(["train", str(store_path), "-o", str(tmp_path / "runs" / "a"), "--workers", "0"]) == 2
    error = capsys.readouterr().err
    assert "drgn-ray: http://127.0.0.1:9: MLflow does not answer (" in error
    remedy = "; start its server, or, on one machine, unset MLFLOW_TRACKING_URI to track in a file beside the runs.\n"
    assert error.endswith(remedy)


def test_a_run_directory_that_is_a_url_is_refused(store_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(store_path), "-o", "s3://bucket/runs/a"]) == 2
    assert "-o s3://bucket/runs/a: this is a URL; pass the path of a folder." in capsys.readouterr().err
