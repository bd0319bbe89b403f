"""Training in one process: it learns, resumes bitwise, and tells each epoch once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from drgn_ray.config import DataConfig, ModelConfig, ResourcesConfig, RunConfig, TrainingConfig
from drgn_ray.distributed.train import train
from drgn_ray.errors import ConfigError, RunError
from drgn_ray.particles.loader import stream_slice
from drgn_ray.particles.order import ParticleOrder
from drgn_ray.particles.store import ParticleStore
from drgn_ray.training import step
from drgn_ray.training.loop import Trainer, Worker, particle_order
from drgn_ray.training.report import LogReporter
from drgn_ray.training.run_directory import RunDirectory


def settings(store_path: Path, num_epochs: int, **training: object) -> RunConfig:
    return RunConfig(
        particles=str(store_path),
        data=DataConfig(val_fraction=0.2, slices_per_epoch=2),
        model=ModelConfig(zdim=2, enc_dim=32, enc_layers=1, dec_dim=32, dec_layers=1, pe_dim=6),
        training=TrainingConfig(num_epochs=num_epochs, precision="fp32", **training),  # type: ignore[arg-type]
        resources=ResourcesConfig(num_workers=0, log_seconds=1e-9),  # a line for every step, however fast
    )


def run_to_the_end(config: RunConfig, path: Path) -> RunDirectory:
    run = RunDirectory(path)
    run.begin(config)
    train(config, run, partial(LogReporter, run, config.training.num_epochs))
    return run


def final_weights(run: RunDirectory) -> dict[str, Tensor]:
    return load_file(sorted(run.checkpoints.glob("slice_*"))[-1] / "model.safetensors")


def lines(run: RunDirectory, kind: str) -> list[dict[str, float]]:
    every = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    return [line for line in every if line["kind"] == kind]


def test_loss_falls_and_held_out_loss_with_it(store_path: Path, tmp_path: Path) -> None:
    epochs = lines(run_to_the_end(settings(store_path, 8, lr=2e-3), tmp_path / "run"), "epoch")
    assert epochs[-1]["train_epoch/loss"] < 0.95 * epochs[0]["train_epoch/loss"]
    assert epochs[-1]["val/loss"] < 0.95 * epochs[0]["val/loss"]


@pytest.mark.parametrize(("points_share", "coarse_share"), [(1.0, 0.0), (0.3, 0.0)])
def test_a_run_begun_short_and_made_longer_is_bitwise_the_long_one(
    store_path: Path, tmp_path: Path, points_share: float, coarse_share: float
) -> None:
    as_said = {"lr_schedule": "constant", "points_share": points_share, "coarse_share": coarse_share}
    whole = run_to_the_end(settings(store_path, 4, **as_said), tmp_path / "whole")
    run_to_the_end(settings(store_path, 2, **as_said), tmp_path / "parts")
    parts = run_to_the_end(settings(store_path, 4, **as_said), tmp_path / "parts")
    for name, tensor in final_weights(whole).items():
        assert torch.equal(tensor, final_weights(parts)[name]), name
    assert [line["epoch"] for line in lines(parts, "epoch")] == [1, 2, 3, 4]


def test_a_batch_taken_in_parts_steps_as_one_taken_whole(
    store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(store_path, 1)
    one_volume = config.model_copy(update={"model": ModelConfig(model="homogeneous", dec_dim=32, dec_layers=1)})
    found = []
    for points in (1, 300, 10_000_000):  # an image at a time, a few with a rest, all
        monkeypatch.setitem(step.POINTS_AT_ONCE, "cpu", points)
        run = run_to_the_end(one_volume, tmp_path / str(points))
        found.append(final_weights(run) | {"loss": torch.tensor(lines(run, "epoch")[0]["train_epoch/loss"])})
    for weights in found[:-1]:
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, found[-1][name], rtol=1e-4, atol=1e-5)


class Interrupted(Exception):
    """The process dies here."""


def test_a_run_that_dies_in_an_epoch_goes_on_bitwise_and_tells_each_epoch_once(
    store_path: Path, tmp_path: Path
) -> None:
    config = settings(store_path, 3)
    whole = run_to_the_end(config, tmp_path / "whole")

    run = RunDirectory(tmp_path / "broken")
    run.begin(config)
    store = ParticleStore(store_path)
    order = particle_order(config, store)

    def dying_stream(slice_index: int) -> Iterator[Mapping[str, Tensor]]:
        for number, batch in enumerate(stream_slice(store, order, slice_index, config.training.batch_size)):
            if slice_index == 3 and number == 2:
                raise Interrupted
            yield batch

    with pytest.raises(Interrupted):
        Trainer(config, store, run, dying_stream, LogReporter(run, 3), Worker()).fit()
    run_to_the_end(config, tmp_path / "broken")

    for name, tensor in final_weights(whole).items():
        assert torch.equal(tensor, final_weights(run)[name]), name
    assert [line["epoch"] for line in lines(run, "epoch")] == [1, 2, 3]
    steps = [line["step"] for line in lines(run, "interval")]
    assert steps == sorted(set(steps))


def test_a_finished_run_is_left_as_it_is(store_path: Path, tmp_path: Path) -> None:
    run = run_to_the_end(settings(store_path, 1), tmp_path / "run")
    before = run.metrics_file.read_bytes()
    run_to_the_end(settings(store_path, 1), tmp_path / "run")
    assert run.metrics_file.read_bytes() == before


def test_other_settings_are_refused_and_the_difference_is_shown(store_path: Path, tmp_path: Path) -> None:
    run_to_the_end(settings(store_path, 1), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"lr was 0\.0005 and is now 0\.01"):
        RunDirectory(tmp_path / "run").begin(settings(store_path, 1, lr=0.01))


def test_a_folder_with_something_else_in_it_is_refused(store_path: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match="holds something that is not a run"):
        RunDirectory(tmp_path).begin(settings(store_path, 1))


def test_a_run_that_diverges_says_so(store_path: Path, tmp_path: Path) -> None:
    again = "also with 0.125 of the learning rate"
    with pytest.raises(RunError, match=f"diverged within .* images, {again} .*diverged.json.* with a smaller --lr"):
        run_to_the_end(settings(store_path, 3, lr=1e9), tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    assert re.match(f"ended: .*{again}", run.log_file.read_text().splitlines()[-1])
    evidence = json.loads(run.diverged_file.read_text())
    assert len(evidence) == 4
    assert evidence[0]["lr"] > 7 * evidence[-1]["lr"]
    assert evidence[0]["source_rows_of_first"]


def spoiled(spoil: Callable[[int, int], bool]) -> Callable[..., Iterator[Mapping[str, Tensor]]]:
    """Stream as usual, but with images that are no numbers in some batches, by their slice and number."""

    def stream(
        store: ParticleStore, order: ParticleOrder, slice_index: int, batch_size: int
    ) -> Iterator[Mapping[str, Tensor]]:
        for number, batch in enumerate(stream_slice(store, order, slice_index, batch_size)):
            yield {**batch, "images": batch["images"] * np.nan} if spoil(slice_index, number) else batch

    return stream


def test_a_batch_that_spoils_the_gradient_is_left_out_and_counted(
    store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("drgn_ray.distributed.train.stream_slice", spoiled(lambda part, batch: (part, batch) == (2, 1)))
    config = settings(store_path, 3)
    with caplog.at_level("INFO"):
        run = run_to_the_end(config, tmp_path / "run")
    assert all(weight.isfinite().all() for weight in final_weights(run).values())
    epochs = lines(run, "epoch")
    assert [line.get("train/skipped_steps", 0) for line in epochs] == [0, 1, 1]
    assert np.isfinite([line["train_epoch/loss"] for line in epochs]).all()
    (said,) = re.findall(r"1 of \d+ steps were left out.*source rows\) ([\d, ]+)", caplog.text)
    store = ParticleStore(store_path)
    batches = stream_slice(store, particle_order(config, store), 2, config.training.batch_size)
    assert said.split(", ") == [str(row) for row in [*batches][1]["source_row"].tolist()]
    assert not run.diverged_file.exists()


def test_a_training_that_diverges_goes_back_and_on_with_a_smaller_rate(
    store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDirectory(tmp_path / "run")
    passing = spoiled(lambda part, batch: part == 3 and not run.diverged_file.exists())
    monkeypatch.setattr("drgn_ray.distributed.train.stream_slice", passing)
    config = settings(store_path, 3)
    with caplog.at_level("INFO"):
        run_to_the_end(config, run.path)
    assert "goes on from its last checkpoint with 0.5 of the learning rate" in caplog.text
    assert [line["epoch"] for line in lines(run, "epoch")] == [1, 2, 3]
    (evidence,) = json.loads(run.diverged_file.read_text())
    assert evidence["slice"] == 3
    assert len(evidence["skipped_steps"]) == evidence["steps"]
    assert evidence["loss"] == "nan"
    assert "loss nan" in caplog.text  # where no step counts; not a loss of 0
    monkeypatch.undo()
    undisturbed = run_to_the_end(config, tmp_path / "undisturbed")
    backed_off, usual = (
        {line["step"]: line["train/lr"] for line in lines(each, "interval")} for each in (run, undisturbed)
    )
    assert [*backed_off] == [*usual]
    before = [*usual].index(evidence["images_seen"]) + 1 - evidence["steps"]  # steps that its last checkpoint has
    shares = [1.0] * before + [0.5] * (len(usual) - before)
    assert [*backed_off.values()] == pytest.approx(
        [lr * share for lr, share in zip(usual.values(), shares, strict=True)]
    )


def test_a_run_without_a_checkpoint_may_be_begun_anew_with_other_settings(store_path: Path, tmp_path: Path) -> None:
    RunDirectory(tmp_path / "run").begin(settings(store_path, 1))
    RunDirectory(tmp_path / "run").begin(settings(store_path, 1, lr=0.01))
    assert RunDirectory(tmp_path / "run").config().training.lr == 0.01


def test_a_line_cut_short_by_a_kill_does_not_stop_the_next_call(store_path: Path, tmp_path: Path) -> None:
    run = run_to_the_end(settings(store_path, 1), tmp_path / "run")
    with run.metrics_file.open("a") as file:
        file.write('{"kind": "interval", "st')
    run_to_the_end(settings(store_path, 2), tmp_path / "run")
    assert [line["epoch"] for line in lines(run, "epoch")] == [1, 2]


def test_a_kill_during_the_first_checkpoint_lets_the_run_begin_anew(store_path: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.begin(settings(store_path, 1))
    (run.checkpoints / ".slice_000001.partial").mkdir()
    run.begin(settings(store_path, 1, lr=0.01))
    assert run.config().training.lr == 0.01
