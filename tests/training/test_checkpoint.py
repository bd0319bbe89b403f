"""Checkpoints hold the full state, are whole or absent, and can be opened by anyone safely."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from drgn_ray.errors import RunError
from drgn_ray.training.checkpoint import (
    Position,
    adopt_checkpoint,
    load_position,
    load_state,
    load_weights,
    newest_checkpoint,
    save_checkpoint,
    set_damaged_aside,
)


def network(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    return model, torch.optim.Adam(model.parameters(), lr=1e-2)


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int, seed: int) -> None:
    torch.manual_seed(seed)
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.randn(16, 4)).square().mean().backward()
        optimizer.step()


def test_steps_after_a_round_trip_are_bitwise_those_without_it(tmp_path: Path) -> None:
    model, optimizer = network(0)
    take_steps(model, optimizer, 3, seed=1)
    save_checkpoint(tmp_path, Position(1), model, optimizer, keep=2)
    take_steps(model, optimizer, 3, seed=2)

    again, its_optimizer = network(99)
    load_state(tmp_path, again, its_optimizer)
    take_steps(again, its_optimizer, 3, seed=2)

    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_that_was_cut_short_is_not_seen(tmp_path: Path) -> None:
    model, optimizer = network(0)
    save_checkpoint(tmp_path, Position(1), model, optimizer, keep=2)
    partial = tmp_path / ".slice_000002.partial"
    partial.mkdir()
    (partial / "position.json").write_text(json.dumps({"next_slice": 2}))
    assert load_position(tmp_path).next_slice == 1


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    model, optimizer = network(0)
    for next_slice in range(1, 5):
        save_checkpoint(tmp_path, Position(next_slice), model, optimizer, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["slice_000003", "slice_000004"]


@pytest.mark.parametrize("theirs", [1, 2, 3])
def test_a_run_that_adopts_a_checkpoint_goes_on_as_the_one_that_gave_it(theirs: int, tmp_path: Path) -> None:
    """Whether it is from before, from as far as the run's own is, or from later."""
    model, optimizer = network(0)
    take_steps(model, optimizer, 3, seed=1)
    save_checkpoint(tmp_path / "donor", Position(theirs), model, optimizer, keep=2)
    take_steps(model, optimizer, 3, seed=2)

    own, its_optimizer = network(99)
    for next_slice in (1, 2):
        save_checkpoint(tmp_path / "run", Position(next_slice), own, its_optimizer, keep=2)
    adopt_checkpoint(tmp_path / "run", newest_checkpoint(tmp_path / "donor"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == [f"slice_{theirs:06d}"]
    load_state(tmp_path / "run", own, its_optimizer)
    take_steps(own, its_optimizer, 3, seed=2)
    assert all(map(torch.equal, model.parameters(), own.parameters()))


def test_position_and_history_come_back(tmp_path: Path) -> None:
    model, optimizer = network(0)
    position = Position(3, 1234, [{"kind": "epoch", "epoch": 1, "step": 1234, "val/loss": 0.5}])
    save_checkpoint(tmp_path, position, model, optimizer, keep=1)
    assert load_position(tmp_path) == position


def test_there_is_no_pickle_in_it(tmp_path: Path) -> None:
    model, optimizer = network(0)
    take_steps(model, optimizer, 1, seed=0)
    save_checkpoint(tmp_path, Position(1), model, optimizer, keep=1)
    names = {path.name for path in (tmp_path / "slice_000001").iterdir()}
    assert names == {"model.safetensors", "optimizer.safetensors", "position.json", "crc32.json"}


def test_a_damaged_checkpoint_is_named_with_what_to_do(tmp_path: Path) -> None:
    model, optimizer = network(0)
    save_checkpoint(tmp_path, Position(1), model, optimizer, keep=1)
    file = tmp_path / "slice_000001" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(RunError, match=r"model\.safetensors: this checkpoint is damaged .*; delete"):
        load_weights(tmp_path, model)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:40])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "position.json"])
def test_of_a_damaged_checkpoint_the_one_before_is_gone_on_from(
    name: str, damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, optimizer = network(0)
    for next_slice in (1, 2):
        take_steps(model, optimizer, 1, seed=next_slice)
        save_checkpoint(tmp_path, Position(next_slice), model, optimizer, keep=2)
    set_damaged_aside(tmp_path)
    assert load_position(tmp_path).next_slice == 2
    damage(tmp_path / "slice_000002" / name)
    with caplog.at_level("WARNING"):
        set_damaged_aside(tmp_path)
    assert re.search("damaged_slice_000002 is damaged .*; the run goes on from the checkpoint before it", caplog.text)
    assert load_position(tmp_path).next_slice == 1
    load_state(tmp_path, model, optimizer)
    flip_a_bit(tmp_path / "slice_000001" / "optimizer.safetensors")
    with pytest.raises(RunError, match="the last of its checkpoints is damaged .*; train anew, in another -o"):
        set_damaged_aside(tmp_path)


def test_weights_of_a_run_without_checkpoint_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="has no checkpoint yet"):
        load_weights(tmp_path / "checkpoints", network(0)[0])
