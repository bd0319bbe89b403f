"""Training in one process: it learns, resumes bitwise, and tells each epoch once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from drgn_ray.config import DataConfig, ModelConfig, ResourcesConfig, RunConfig, TrainingConfig
from drgn_ray.distributed.train import train
from drgn_ray.errors import ConfigError, RunError
from drgn_ray.particles.loader import stream_slice
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
        resources=ResourcesConfig(num_workers=0, log_seconds=0.01),
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
    with pytest.raises(RunError, match="the loss became (nan|inf) within .* with a smaller --lr"):
        run_to_the_end(settings(store_path, 3, lr=1e6), tmp_path / "run")


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
