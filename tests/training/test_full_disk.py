"""A disk that is full for a while costs nothing, and one that stays full ends a training with a sentence."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from test_loop import final_weights, lines, run_to_the_end, settings

from drgn_ray import patience
from drgn_ray.distributed.train import train
from drgn_ray.errors import StorageError
from drgn_ray.training.report import LogReporter
from drgn_ray.training.run_directory import RunDirectory

MEGABYTE = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], check=False)
    if mounted.returncode:
        pytest.skip("this user may not mount a file system, which could be filled")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)  # a log may be open


def fill(disk: Path) -> None:
    """Leave no byte free."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (MEGABYTE // 8, 4096, 1):
            try:
                while file.write(b"x" * size) == size:
                    pass
            except OSError:
                continue


class FillsAfter(LogReporter):
    """Fills the disk when the first epoch is told."""

    def __init__(self, run: RunDirectory, num_epochs: int, disk: Path) -> None:
        super().__init__(run, num_epochs)
        self.disk = disk

    def epoch(self, step: int, *others: object) -> None:
        super().epoch(step, *others)  # type: ignore[arg-type]
        if others[0]["epoch"] == 1:  # type: ignore[index]
            fill(self.disk)


def test_a_disk_that_is_full_for_a_while_costs_nothing(
    store_path: Path,
    tmp_path: Path,
    small_disk: Path,
    once_it_waits: Callable[[Callable[[], object]], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(patience, "RETRY_SECONDS", 0.1)
    config, run = settings(store_path, 3), RunDirectory(small_disk / "run")
    run.begin(config)
    once_it_waits((small_disk / "filler").unlink)
    train(config, run, partial(FillsAfter, run, 3, small_disk))
    assert "waiting for its storage" in caplog.text
    assert "No space left on device" in caplog.text
    undisturbed = run_to_the_end(config, tmp_path / "undisturbed")
    for name, weights in final_weights(undisturbed).items():
        assert weights.equal(final_weights(run)[name])
    assert [line["epoch"] for line in lines(run, "epoch")] == [1, 2, 3]


def test_a_disk_that_stays_full_ends_a_training_with_a_sentence_and_it_goes_on_later(
    store_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.5)
    config, run = settings(store_path, 3), RunDirectory(small_disk / "run")
    run.begin(config)
    with pytest.raises(StorageError, match=r"its storage failed for \d s .*No space left on device"):
        train(config, run, partial(FillsAfter, run, 3, small_disk))
    (small_disk / "filler").unlink()
    train(config, run, partial(LogReporter, run, 3))
    assert [line["epoch"] for line in lines(run, "epoch")] == [1, 2, 3]
