"""A conversion that is killed leaves nothing that looks whole, and the same command goes on where it was."""

from __future__ import annotations

import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from star_sets import StarSet, files_of, random_set

from drgn_ray.errors import StoreError
from drgn_ray.particles import store as store_module
from drgn_ray.particles.store import ParticleStore
from jobs.cli import main

COUNT, BOX_SIZE, SHARD_ROWS = 6000, 32, 64
SHARD_BYTES = SHARD_ROWS * BOX_SIZE**2 * 2
NUM_SHARDS = -(-COUNT // SHARD_ROWS)
STORE = "particles.zarr"
REPOSITORY = Path(__file__).parents[2]
CONVERT = (
    f"import sys; from drgn_ray.particles import store; store.SHARD_BYTES = {SHARD_BYTES};"
    " from jobs.convert import main; sys.exit(main(sys.argv[1:]))"
)


def kill_when(condition: Callable[[], bool], words: list[str], folder: Path) -> None:
    """Start the conversion as a process of its own, and kill it as soon as the condition holds."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, "-c", CONVERT, *words], cwd=folder, env=environment, stdout=subprocess.DEVNULL
    )
    while not condition():
        assert process.poll() is None, "the conversion ended before it could be killed"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def finished_shards(folder: Path) -> list[Path]:
    """Records of the shards that are written."""
    return sorted((folder / STORE / "progress").glob("[0-9]*"))


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6,000 images of 32 px: 94 shards."""
    return random_set(tmp_path_factory.mktemp("large"), COUNT, BOX_SIZE).write()


@pytest.fixture(scope="module")
def words(star: Path) -> list[str]:
    return [str(star), "-o", STORE, "--workers", "0"]


@pytest.fixture(scope="module")
def in_one_go(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """All files of a store whose conversion nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(store_module, "SHARD_BYTES", SHARD_BYTES)
        assert main(["convert", *words]) == 0
    return files_of(folder / STORE)


@pytest.fixture(scope="module")
def killed_once(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a store whose conversion was killed after the first shards."""
    folder = tmp_path_factory.mktemp("killed")
    kill_when(lambda: len(finished_shards(folder)) >= 3, words, folder)
    assert 3 <= len(finished_shards(folder)) < NUM_SHARDS
    return folder


@pytest.fixture
def killed(killed_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, and the working folder."""
    folder = tmp_path / "killed"
    shutil.copytree(killed_once, folder)
    monkeypatch.chdir(folder)
    return folder


def test_a_killed_conversion_is_refused_with_the_command_that_finishes_it(killed: Path, words: list[str]) -> None:
    with pytest.raises(StoreError) as refused:
        ParticleStore(STORE)
    command = shlex.join(["drgn-ray", "convert", *words])
    assert str(refused.value) == f"{STORE}: its conversion did not finish; finish it with `{command}`."


def test_that_command_finishes_it(killed: Path) -> None:
    with pytest.raises(StoreError) as refused:
        ParticleStore(STORE)
    program, *arguments = shlex.split(str(refused.value).split("`")[1])
    assert program == "drgn-ray"
    assert main(arguments) == 0
    assert len(ParticleStore(STORE)) == COUNT


def test_a_store_finished_later_is_the_same_bit_by_bit(
    killed: Path, words: list[str], in_one_go: dict[str, bytes]
) -> None:
    assert main(["convert", *words]) == 0
    assert files_of(killed / STORE) == in_one_go


def test_a_finished_conversion_given_again_leaves_the_store_as_it_is(
    killed: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", *words]) == 0
    before = {file: file.stat().st_mtime_ns for file in (killed / STORE).rglob("*")}
    capsys.readouterr()
    assert main(["convert", *words]) == 0
    assert "it is whole already" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in (killed / STORE).rglob("*")} == before


def test_a_finished_conversion_whose_store_is_damaged_is_not_taken_for_whole(
    killed: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", *words]) == 0
    settings = killed / STORE / "zarr.json"
    settings.write_text(settings.read_text().replace('"scale"', '"scales"'))
    assert main(["convert", *words]) == 2
    assert "its file zarr.json is damaged; convert the particles again with --overwrite" in capsys.readouterr().err


def test_finished_shards_are_not_written_again(killed: Path, words: list[str]) -> None:
    shards = [killed / STORE / f"images/c/{int(record.stem)}/0/0" for record in finished_shards(killed)]
    before = [shard.stat().st_mtime_ns for shard in shards]
    assert main(["convert", *words]) == 0
    assert [shard.stat().st_mtime_ns for shard in shards] == before


def test_a_shard_without_its_record_is_written_again(
    killed: Path, words: list[str], in_one_go: dict[str, bytes]
) -> None:
    """As when the process dies after a shard, before its record."""
    finished_shards(killed)[1].unlink()
    assert main(["convert", *words]) == 0
    assert files_of(killed / STORE) == in_one_go


def test_what_zarr_left_of_a_shard_is_no_part_of_the_store(
    killed: Path, words: list[str], in_one_go: dict[str, bytes]
) -> None:
    """Zarr writes a shard under another name first, which stays when the process is killed meanwhile."""
    left = killed / STORE / "images/c/50/0/0.0f8fad5bd9cb469fa16570867728950e.partial"
    left.parent.mkdir(parents=True)
    left.write_bytes(bytes(1000))
    assert main(["convert", *words]) == 0
    assert files_of(killed / STORE) == in_one_go


def test_half_a_shard_without_its_record_is_written_again(
    killed: Path, words: list[str], in_one_go: dict[str, bytes]
) -> None:
    """As when the machine loses power, and the file's name has reached the disk but not all of its bytes."""
    record = finished_shards(killed)[1]
    shard = killed / STORE / f"images/c/{int(record.stem)}/0/0"
    shard.write_bytes(shard.read_bytes()[: SHARD_BYTES // 2])
    record.unlink()
    assert main(["convert", *words]) == 0
    assert files_of(killed / STORE) == in_one_go


def test_a_conversion_killed_at_its_very_start_is_finished_by_the_same_command(
    words: list[str], in_one_go: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_when((tmp_path / STORE / "zarr.json").exists, words, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(store_module, "SHARD_BYTES", SHARD_BYTES)
    assert main(["convert", *words]) == 0
    assert files_of(tmp_path / STORE) == in_one_go


@pytest.mark.parametrize(
    "changed", ["-D 16", "--dtype float32", "--no-invert", "--first 100", "--no-ctf", "--apix 2.5"]
)
def test_a_changed_option_is_refused(
    changed: str, killed: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = finished_shards(killed)
    assert main(["convert", *words, *changed.split()]) == 2
    error = capsys.readouterr().err
    assert f"{STORE}: an unfinished conversion with other settings or sources is here (`drgn-ray convert " in error
    assert error.endswith("); finish that one with the same command, or pass --overwrite.\n")
    assert finished_shards(killed) == before


def test_another_selection_of_as_many_particles_is_refused(
    killed: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the first shards would hold other particles than their poses say."""
    np.save("ind.npy", np.arange(COUNT)[::-1])
    assert main(["convert", *words, "--ind", "ind.npy"]) == 2
    assert "an unfinished conversion with other settings or sources is here" in capsys.readouterr().err


def test_a_changed_source_is_refused(
    words: list[str], killed: Path, tmp_path: Path, star: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other" / star.name
    shutil.copytree(star.parent, other.parent)
    assert main(["convert", str(other), *words[1:]]) == 2
    assert "an unfinished conversion with other settings or sources is here" in capsys.readouterr().err


def test_overwrite_begins_again(killed: Path, words: list[str]) -> None:
    assert main(["convert", *words, "--first", "100", "--overwrite"]) == 0
    assert len(ParticleStore(STORE)) == 100


class TestWithPickles:
    """A conversion of a stack with cryoDRGN's pickles that a bad pixel in a late shard ends."""

    @pytest.fixture
    def pickled(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StarSet:
        monkeypatch.setattr(store_module, "SHARD_BYTES", 64 * 8 * 8 * 2)
        monkeypatch.chdir(tmp_path)
        stack = random_set(tmp_path, count=2500, box_size=8)
        stack.images[2001] = np.nan
        stack.write()
        return stack

    def test_other_poses_are_refused(self, pickled: StarSet, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["convert", str(pickled.stack), "--no-ctf", "--apix", "2", "-o", STORE, "--workers", "0", "--poses"]
        for name, angle in (("a.pkl", 0.1), ("b.pkl", 0.2)):
            turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
            Path(name).write_bytes(pickle.dumps(np.tile(turn, (2500, 1, 1))))
        assert main([*words, "a.pkl"]) == 2
        assert "has pixels that are not numbers" in capsys.readouterr().err
        assert main([*words, "b.pkl"]) == 2
        assert "an unfinished conversion with other settings or sources is here" in capsys.readouterr().err
