"""Checkpoints: weights and Adam's moments as safetensors, the position as JSON, nothing pickled.

A checkpoint is a directory that is renamed into place when it is whole, with the checksums of its files.  Learning
rate, order of particles and latent noise are functions of the position, so weights, moments and position are the full
state.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import zlib
from dataclasses import asdict, dataclass, field
from functools import partial as bound
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from drgn_ray.errors import RunError
from drgn_ray.patience import patiently

logger = logging.getLogger(__name__)
_PREFIX, _DAMAGED = "slice_", "damaged_"
_CHECKSUMS, _WEIGHTS, _POSITION = "crc32.json", "model.safetensors", "position.json"


@dataclass
class Position:
    """How far training has come.

    Attributes
    ----------
    next_slice
        The slice to train next; slices before it are done.
    images_seen
        Images used for training so far, over all workers.
    history
        Metrics of every finished epoch.
    seconds, gpu_seconds
        Spent on training so far; the latter once for every GPU.
    skipped_steps
        Left out so far, since their gradients were no numbers.
    store_digest
        Of the store that it was trained on; empty where that is not known.
    """

    next_slice: int = 0
    images_seen: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    gpu_seconds: float = 0.0
    skipped_steps: int = 0
    store_digest: str = ""


def save_checkpoint(
    folder: Path, position: Position, model: nn.Module, optimizer: torch.optim.Optimizer | None, keep: int
) -> None:
    """Write a checkpoint atomically, then drop all but the `keep` newest; without an optimiser it is an end.

    Storage that fails is waited for (`drgn_ray.patience`).
    """
    patiently(folder, lambda: _write_checkpoint(folder, position, model, optimizer))
    for old in _finished(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)  # what stays is dropped next time


def _write_checkpoint(
    folder: Path, position: Position, model: nn.Module, optimizer: torch.optim.Optimizer | None
) -> None:
    final = folder / f"{_PREFIX}{position.next_slice:06d}"
    partial = folder / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _save(partial / _WEIGHTS, model.state_dict())
    if optimizer is not None:
        _save(partial / "optimizer.safetensors", _moments(model, optimizer))
    (partial / _POSITION).write_text(json.dumps(asdict(position)))
    (partial / _CHECKSUMS).write_text(json.dumps({file.name: _crc32(file) for file in partial.iterdir()}))
    for file in (*partial.iterdir(), partial):
        _sync(file)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    _sync(folder)


def adopt_checkpoint(folder: Path, donated: Path) -> None:
    """Put the checkpoint of another run of the same model in the place of all that are here."""
    own = _finished(folder)
    final = folder / f"{_PREFIX}{read_position(donated).next_slice:06d}"
    partial = folder / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(donated, partial)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    for old in own:
        if old != final:
            shutil.rmtree(old)


def set_damaged_aside(folder: Path) -> None:
    """Let the newest whole checkpoint be the newest, and say so; what is damaged is kept under another name.

    Raises
    ------
    RunError
        None of those that there are is whole.
    """
    checkpoints = _finished(folder)
    for number, checkpoint in enumerate(reversed(checkpoints), start=1):
        reason = _damage(checkpoint)
        if not reason:
            return
        aside = folder / f"{_DAMAGED}{checkpoint.name}"
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
        if number == len(checkpoints):
            raise RunError(
                str(aside), f"the last of its checkpoints is damaged ({reason})", "train anew, in another -o"
            )
        logger.warning("%s is damaged (%s); the run goes on from the checkpoint before it", aside, reason)


def _damage(checkpoint: Path) -> str:
    """Say what is wrong with a checkpoint; empty where nothing is."""
    try:
        names = {file.name for file in patiently(checkpoint, lambda: [*checkpoint.iterdir()])}
        for name in (_WEIGHTS, _POSITION):
            if name not in names:
                return f"{name} is not there"
        if _CHECKSUMS not in names:  # of a version that wrote none
            return ""
        checksums: dict[str, int] = json.loads(patiently(checkpoint, (checkpoint / _CHECKSUMS).read_text))
        for name, checksum in checksums.items():
            if name not in names:
                return f"{name} is not there"
            if patiently(checkpoint, bound(_crc32, checkpoint / name)) != checksum:
                return f"{name} is not what was written"
    except (ValueError, AttributeError) as error:
        return " ".join(str(error).split())
    return ""


def _crc32(file: Path) -> int:
    checksum = 0
    with file.open("rb") as handle:
        while part := handle.read(1 << 24):
            checksum = zlib.crc32(part, checksum)
    return checksum


def _sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def newest_checkpoint(folder: Path) -> Path:
    """Name the newest checkpoint, which there must be."""
    return _finished(folder)[-1]


def load_position(folder: Path) -> Position:
    """Read the newest checkpoint's position; the start if there is none."""
    checkpoints = _finished(folder)
    if not checkpoints:
        return Position()
    return read_position(checkpoints[-1])


def read_position(checkpoint: Path) -> Position:
    """Read the position of a checkpoint."""
    file = checkpoint / _POSITION
    try:
        return Position(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(file, error) from error


def load_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load the newest checkpoint, if there is one, into model and optimiser."""
    checkpoints = _finished(folder)
    if not checkpoints:
        return
    load_weights(folder, model)
    saved = _load(checkpoints[-1] / "optimizer.safetensors")
    state = optimizer.state_dict()
    for index, (name, parameter) in enumerate(_trained(model)):
        moments = {key.removeprefix(f"{name}/"): value for key, value in saved.items() if key.startswith(f"{name}/")}
        state["state"][index] = {key: value.to(parameter.device) for key, value in moments.items()}
    optimizer.load_state_dict(state)


def load_weights(folder: Path, model: nn.Module) -> None:
    """Load the newest checkpoint's weights."""
    checkpoints = _finished(folder)
    if not checkpoints:
        raise RunError(str(folder.parent), "it has no checkpoint yet", "let `drgn-ray train` finish an epoch first")
    file = checkpoints[-1] / _WEIGHTS
    try:
        model.load_state_dict(_load(file))
    except RuntimeError as error:  # PyTorch's word for other names or shapes
        found, remedy = "its weights are of other settings than config.yaml has", "undo what was changed there"
        raise RunError(str(file), found, remedy) from error


def _load(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> RunError:
    remedy = f"delete {file.parent}, so that the one before is used"
    return RunError(str(file), f"this checkpoint is damaged ({error})", remedy)


def has_checkpoint(folder: Path) -> bool:
    """Whether there is anything to go on from."""
    return bool(_finished(folder))


def has_damaged(folder: Path) -> bool:
    """Whether checkpoints were set aside as damaged."""
    return any(folder.glob(f"{_DAMAGED}*"))


def _finished(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_PREFIX}*"))


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state = optimizer.state_dict()["state"]
    names = [name for name, _ in _trained(model)]
    return {f"{names[index]}/{key}": value for index, moments in state.items() for key, value in moments.items()}


def _save(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, file)
    except SafetensorError as error:  # as of a full disk
        raise OSError(str(error)) from error
