"""A run is trained on one store, wherever that is, and on no other that took its place."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from servers import WAIT_SECONDS

from conversions.driver import Options, convert
from conversions.inputs import read_particles
from conversions.simulated import write_simulated_particles
from drgn_ray.errors import StoreError
from drgn_ray.particles.store import ParticleStore
from drgn_ray.training.checkpoint import load_position
from drgn_ray.training.run_directory import RunDirectory
from jobs.cli import main

SMALL = "--zdim 2 --enc-dim 16 --dec-dim 16 --workers 0 --no-analysis".split()


@pytest.fixture
def store(store_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(store_path, tmp_path / "particles.zarr"))


@pytest.fixture
def run(store: Path, tmp_path: Path) -> RunDirectory:
    """A run of one epoch."""
    run = RunDirectory(tmp_path / "run")
    assert main(["train", str(store), "-o", str(run.path), "-n", "1", *SMALL]) == 0
    return run


def convert_others_to(store: Path) -> None:
    """Put other particles, as many and as large, in the place of those that are there."""
    star = write_simulated_particles(store.parent / "others", 300, seed=1)
    convert(read_particles(str(star)), Options(str(store), 32, "float16", None, True, 0, "drgn-ray convert"))


def test_a_run_does_not_go_on_with_other_particles(
    run: RunDirectory, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert_others_to(store)
    assert main(["train", "-o", str(run.path), "-n", "2", "--no-analysis"]) == 2
    assert f"{store}: it is not the store that {run.path} was trained on; bring that back" in capsys.readouterr().err
    assert len(load_position(run.checkpoints).history) == 1


def test_particles_that_change_during_a_training_end_it(store: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    command = [sys.executable, "-m", "jobs.train", str(store), "-o", str(run.path), "-n", "10000", *SMALL]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as training:
        try:
            while not load_position(run.checkpoints).history:
                assert training.poll() is None
                time.sleep(0.05)
            convert_others_to(store)
            _, error = training.communicate(timeout=WAIT_SECONDS)
        finally:
            training.kill()
    assert training.returncode == 2
    assert "Traceback" not in error
    # While files are replaced one by one, a reader may also meet one that is not what the others say.
    assert error.startswith(f"drgn-ray: {store}: ")


def test_an_open_store_notices_that_it_was_converted_anew(store: Path) -> None:
    opened = ParticleStore(store)
    opened.check_unchanged()
    convert_others_to(store)
    with pytest.raises(StoreError, match="it was converted anew meanwhile"):
        opened.check_unchanged()


def test_a_run_goes_on_with_its_store_when_that_was_moved(run: RunDirectory, store: Path) -> None:
    moved = store.rename(store.with_name("moved.zarr"))
    words = [str(moved), "-o", str(run.path), "--config", str(run.config_file), "-n", "2", "--no-analysis"]
    assert main(["train", *words]) == 0
    assert run.config().particles == str(moved)
    assert len(load_position(run.checkpoints).history) == 2


def test_fewer_epochs_than_are_trained_are_refused(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-o", str(run.path), "-n", "2", "--no-analysis"]) == 0
    assert main(["train", "-o", str(run.path), "-n", "1", "--no-analysis"]) == 2
    assert "2 epochs are trained already, more than 1; pass --num-epochs 2 or more" in capsys.readouterr().err
    assert run.config().num_epochs == 2


@pytest.mark.parametrize("name", ["position.json", "model.safetensors"])
def test_a_checkpoint_without_a_file_is_damaged_though_no_checksum_says_so(
    name: str, run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "-o", str(run.path), "-n", "2", "--no-analysis"]) == 0
    newest = sorted(run.checkpoints.glob("slice_*"))[-1]
    (newest / "crc32.json").unlink()
    (newest / name).unlink()
    capsys.readouterr()
    assert main(["train", "-o", str(run.path), "-n", "2", "--no-analysis"]) == 0
    told = capsys.readouterr().out
    assert f"is damaged ({name} is not there); the run goes on from the checkpoint before it" in told
    assert "going on at epoch 2/2" in told


def test_a_run_all_of_whose_checkpoints_are_damaged_is_not_begun_anew_over_its_results(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    for checkpoint in run.checkpoints.glob("slice_*"):
        (checkpoint / "position.json").write_text("{")
    for _ in range(2):
        assert main(["train", "-o", str(run.path), "-n", "2", "--no-analysis"]) == 2
        assert "train anew, in another -o" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "{}", "[]"])
def test_a_damaged_mlflow_json_is_one_sentence(
    content: str, run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    run.mlflow_file.write_text(content)
    assert main(["train", "-o", str(run.path), "-n", "2", "--no-analysis"]) == 2
    assert "mlflow.json: it names no MLflow run; delete it" in capsys.readouterr().err


def test_half_a_message_to_mlflow_is_said_and_the_rest_told(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    run.mlflow_outbox.mkdir()
    message = json.dumps({"what": "tag", "name": "after", "value": "it"})
    (run.mlflow_outbox / "waiting.jsonl").write_text(f'{{"what": "tag", "na\n{message}\n')
    assert main(["train", "-o", str(run.path), "-n", "2", "--no-analysis"]) == 0
    assert "waiting.jsonl: a message is damaged and cannot be told" in capsys.readouterr().out
    assert not (run.mlflow_outbox / "waiting.jsonl").exists()


def test_weights_of_other_settings_are_refused(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    text = run.config_file.read_text()
    assert "enc_dim: 16" in text
    run.config_file.write_text(text.replace("enc_dim: 16", "enc_dim: 32"))
    assert main(["train", "-o", str(run.path), "-n", "2", "--no-analysis"]) == 2
    error = capsys.readouterr().err
    assert "its weights are of other settings than config.yaml has; undo what was changed there" in error
    assert len(error.splitlines()) == 1
