"""Runs of ``cryodrgn train_vae`` made ours, and ours made theirs (tensors: `conversions.cryodrgn_network`)."""

from __future__ import annotations

import logging
import re
import sys
from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from pydantic import BaseModel, Field, NonNegativeInt, PositiveFloat
from pydantic import ValidationError as PydanticError
from torch import Tensor

from conversions.cryodrgn import as_numbers, read_pickles
from conversions.cryodrgn_network import moments_to_theirs, shapes, weights_to_ours, weights_to_theirs
from conversions.cryodrgn_write import (
    CTF_NAME,
    POSES_NAME,
    STACK_NAME,
    free_folder,
    made_whole,
    write_inputs,
    write_pickle,
)
from drgn_ray import __version__
from drgn_ray.config import DataConfig, ModelConfig, RunConfig, TrainingConfig, describe
from drgn_ray.errors import RunError
from drgn_ray.models.vae import VAE
from drgn_ray.particles.store import ParticleStore, StoreInfo
from drgn_ray.training.checkpoint import Position, load_position, load_state, save_checkpoint
from drgn_ray.training.embed import (
    Latents,
    embed_chunks,
    in_source_order,
    latents_of,
    trained_epochs,
)
from drgn_ray.training.loop import model_for, particle_order
from drgn_ray.training.run_directory import RunDirectory

logger = logging.getLogger(__name__)
LAYOUT = "4.3.0"  # the version of cryoDRGN whose files these are
_WINDOW_RADIUS = 0.85
_LARGEST_DEVIATION = 0.2  # cryoDRGN's error of shifts makes 0.05 at 32 px and shifts up to 3 px; other particles 1
_TRAIN_VAE = "pass the output folder of `cryodrgn train_vae`"


def import_run(
    folder: str | Path, output: str | Path, *, particles: str | Path, epoch: int | None = None
) -> RunDirectory:
    """Make a run directory of a finished ``cryodrgn train_vae``.

    Its latents are cryoDRGN's.  ``drgn-ray embed`` finds the same, but for shifted images, which cryoDRGN shifts too
    far by 1/D (`drgn_ray.units`).  Volumes are cryoDRGN's with density positive, so negated where its were not.

    Parameters
    ----------
    folder
        What was its ``-o``.
    output
        The run directory to be made.
    particles
        A store of the same particles in the same order and box.
    epoch
        The epoch (from 1) whose files are taken; None: the last.
    """
    source, target, store = Path(folder), free_folder(output), ParticleStore(particles)
    file = source / "config.yaml"
    settings = _read_settings(file)
    unit = _unit_ratio(file, settings, store)
    suffix = _suffix(source, epoch)
    saved = _read_weights(source / f"weights{suffix}")
    config = _run_config(file, settings, saved, store)
    _check_shapes(source / f"weights{suffix}", saved.weights, config.model, store.info.box_size)
    images_seen = saved.epoch * len(store)
    latents = _read_latents(source / f"z{suffix}", config.model.zdim, store, images_seen)
    with made_whole(target) as partial:
        run = RunDirectory(partial)
        run.begin(config)
        network = model_for(config, store)
        weights = weights_to_ours(saved.weights, config.model, store.info.box_size, unit)
        network.load_state_dict(network.state_dict() | weights)
        slices = saved.epoch * particle_order(config, store).slices_per_epoch
        history = _read_history(source / "run.log", saved.epoch, len(store))
        position = Position(slices, images_seen, history)
        save_checkpoint(run.checkpoints, position, network, torch.optim.Adam(network.parameters()), keep=1)
        latents.save(run.latents_file)
        if not (deviation := _deviation(run, store, latents)) <= _LARGEST_DEVIATION:  # or it is no number
            raise RunError(
                store.path,
                f"the network's latents of its first particles are not those in {source / f'z{suffix}'}"
                f" (they differ by {deviation:.2f} of their spread)",
                "convert the particles it was trained on, in the same order",
            )
    return RunDirectory(target)


def export_run(run: RunDirectory, folder: str | Path) -> None:
    """Make a directory that cryoDRGN's ``analyze``, ``eval_vol``, ``graph_traversal`` and dashboard open.

    It holds the particles as well, and cryoDRGN can train on from there (``train_vae --load``).
    """
    config, target = run.config(), free_folder(folder)
    if config.model.model != "vae":
        raise RunError(str(run.path), f"it is {config.model.model}, and only a VAE is exported", "pass a run of one")
    if (config.model.encoder, config.model.decoder) != ("residual", "coordinate"):
        has_decoder = config.model.decoder == "coordinate"
        part = f"{config.model.encoder} encoder" if has_decoder else f"{config.model.decoder} decoder"
        raise RunError(
            str(run.path),
            f"cryoDRGN has no {part}",
            "pass a run of --encoder residual --decoder coordinate, or export particles with -o",
        )
    store, latents = ParticleStore(config.particles), latents_of(run)
    rows = np.argsort(store.columns["source_row"])
    if (
        not np.array_equal(store.columns["source_row"][rows], latents.source_row)
        or not _deviation(run, store, latents) <= _LARGEST_DEVIATION
    ):
        raise RunError(
            str(run.latents_file),
            f"these latents are not those of the newest checkpoint and {store.path}",
            f"type `drgn-ray embed {run.path}`",
        )
    epoch = trained_epochs(run, config, store)
    if not epoch:
        raise RunError(str(run.path), "its first epoch is not finished", "let `drgn-ray train` finish it")
    network = model_for(config, store)
    assert isinstance(network, VAE)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.training.lr, weight_decay=config.training.weight_decay)
    load_state(run.checkpoints, network, optimizer)
    saved = {
        "epoch": epoch,
        "model_state_dict": weights_to_theirs(network, config.model, store.info.box_size),
        "optimizer_state_dict": moments_to_theirs(network, optimizer, config.model, store.info.box_size),
    }
    with made_whole(target) as partial:
        write_inputs(partial, store, rows)
        for suffix in (f".{epoch}.pkl", ".pkl"):
            torch.save(saved, partial / f"weights{suffix}")
            write_pickle(partial / f"z{suffix}", latents.z.astype(np.float32), latents.z_logvar.astype(np.float32))
        settings = _settings(config, store.info, target, run)
        (partial / "config.yaml").write_text(yaml.safe_dump(settings))
        (partial / "run.log").write_text(_log(settings["cmd"], load_position(run.checkpoints), epoch))


class _DatasetArgs(BaseModel):
    norm: tuple[float, PositiveFloat]
    invert_data: bool
    window: bool
    window_r: float = _WINDOW_RADIUS
    ctf: str | None
    keepreal: bool = False
    do_pose_sgd: bool = False


class _LatticeArgs(BaseModel):
    D: int
    extent: float
    ignore_DC: bool = True


class _ModelArgs(BaseModel):
    zdim: int
    qdim: int
    qlayers: int
    pdim: int
    players: int
    encode_mode: str
    enc_mask: int
    domain: str
    activation: str = "relu"
    pe_type: str
    pe_dim: int | None = None
    feat_sigma: float | None = None


class _Settings(BaseModel):
    """What we need of their ``config.yaml``; defaults are of files older than the setting."""

    data: _DatasetArgs = Field(alias="dataset_args")
    lattice: _LatticeArgs = Field(alias="lattice_args")
    model: _ModelArgs = Field(alias="model_args")
    seed: NonNegativeInt = 0
    cmd: list[str] = []


def _read_settings(file: Path) -> _Settings:
    """Read their settings; refuse those that our networks cannot have."""
    if not file.is_file():
        raise RunError(str(file), "there is no such file", _TRAIN_VAE)
    try:
        settings = _Settings.model_validate(yaml.safe_load(file.read_text()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunError(str(file), f"cannot be read as YAML ({' '.join(str(error).split())})", _TRAIN_VAE) from error
    except PydanticError as error:
        first = error.errors()[0]
        where = ": ".join(map(str, first["loc"])) or "all of it"
        raise RunError(
            str(file), f"it is not of `cryodrgn train_vae` ({where}: {first['msg'].lower()})", _TRAIN_VAE
        ) from error
    data, lattice, model = settings.data, settings.lattice, settings.model
    needed = {
        "encode_mode": (model.encode_mode, "resid"),
        "enc_mask": (model.enc_mask, (lattice.D - 1) // 2),
        "domain": (model.domain, "fourier"),
        "activation": (model.activation, "relu"),
        "keepreal": (data.keepreal, False),
        "do_pose_sgd": (data.do_pose_sgd, False),
        "window_r": (data.window_r if data.window else _WINDOW_RADIUS, _WINDOW_RADIUS),
        "the mean of norm": (data.norm[0], 0),
        "extent": (lattice.extent, 0.5),
        "ignore_DC": (lattice.ignore_DC, True),
    }
    for name, (found, ours) in needed.items():
        if found != ours:
            raise RunError(
                str(file), f"{name} is {found!r}, which drgn_ray's networks cannot have", f"train with {name} {ours!r}"
            )
    return settings


def _run_config(file: Path, settings: _Settings, saved: _Saved, store: ParticleStore) -> RunConfig:
    """Say the same in our settings."""
    parser = ArgumentParser(add_help=False)  # of what is in their command line only
    parser.add_argument("-b", "--batch-size", type=int, default=16)
    parser.add_argument("--beta")
    parser.add_argument("--beta-control")
    flags = parser.parse_known_args(settings.cmd)[0]
    beta = flags.beta
    if beta in ("a", "b", "c", "d") or flags.beta_control is not None:
        logger.warning("%s: its --beta %s was no constant weight; training on here would take 1/zdim", file, beta)
        beta = None
    model = settings.model
    try:
        return RunConfig(
            particles=store.absolute_path,
            data=DataConfig(val_fraction=0),
            model=ModelConfig(
                zdim=model.zdim,
                enc_dim=model.qdim,
                enc_layers=model.qlayers,
                dec_dim=model.pdim,
                dec_layers=model.players,
                pe_type=model.pe_type,  # pyright: ignore[reportArgumentType]
                pe_dim=model.pe_dim,
                feat_sigma=model.feat_sigma or ModelConfig().feat_sigma,
                beta=beta,
                window=settings.data.window,
            ),
            training=TrainingConfig(
                num_epochs=saved.epoch,
                batch_size=flags.batch_size,
                lr=saved.lr,
                lr_schedule="constant",
                warmup_epochs=0,
                weight_decay=saved.weight_decay,
                seed=settings.seed,
            ),
        )
    except PydanticError as error:
        raise RunError(str(file), describe(error), "train with settings that drgn_ray has") from error


def _unit_ratio(file: Path, settings: _Settings, store: ParticleStore) -> float:
    """Their image values over ours; refuse a store of other images."""
    info, box_size = store.info, settings.lattice.D - 1
    if info.box_size != box_size:
        raise RunError(
            store.path,
            f"its images have {info.box_size} px, those of {file} {box_size} px",
            f"convert those particles with -D {box_size}",
        )
    if info.has_ctf != (settings.data.ctf is not None):
        raise RunError(
            store.path,
            f"its images are {'with' if info.has_ctf else 'without'} CTF, unlike those of {file}",
            "convert the particles as they were trained on",
        )
    sign = info.data_sign * (-1 if settings.data.invert_data else 1)
    return sign * info.hartley_std * info.scale / settings.data.norm[1]


def _suffix(folder: Path, epoch: int | None) -> str:
    """Find the end of the names of an epoch's files."""
    if epoch is None and (folder / "weights.pkl").exists():
        return ".pkl"
    names = [re.fullmatch(r"weights\.(\d+)\.pkl", path.name) for path in folder.iterdir()]
    found = sorted(int(name[1]) for name in names if name)
    if not found or epoch not in (None, *found):
        wanted = "weights.pkl" if epoch is None else f"weights.{epoch}.pkl"
        there = f"there are epochs {', '.join(map(str, found))}" if found else "there are no other weights"
        raise RunError(str(folder / wanted), f"there is no such file ({there})", _TRAIN_VAE)
    return f".{found[-1] if epoch is None else epoch}.pkl"


@dataclass(frozen=True)
class _Saved:
    """What their file of weights holds."""

    weights: Mapping[str, Tensor]
    epoch: int
    lr: float
    weight_decay: float


def _read_weights(file: Path) -> _Saved:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
        group = content["optimizer_state_dict"]["param_groups"][0]
        return _Saved(dict(content["model_state_dict"]), content["epoch"], group["lr"], group["weight_decay"])
    except Exception as error:
        what = str(error).partition("\n")[0]
        raise RunError(str(file), f"these are not the weights of `cryodrgn train_vae` ({what})", _TRAIN_VAE) from error


def _check_shapes(file: Path, weights: Mapping[str, Tensor], model: ModelConfig, box_size: int) -> None:
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    expected = shapes(model, box_size)
    if found != expected:
        name = next(name for name in (*expected, *found) if expected.get(name) != found.get(name))
        raise RunError(
            str(file),
            f"{name} has the shape {found.get(name)}, not {expected.get(name)} as config.yaml says",
            "pass the folder of one run, with its own config.yaml",
        )
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        raise RunError(str(file), "its weights are no numbers", "pass an earlier epoch")


def _read_latents(file: Path, zdim: int, store: ParticleStore, images_seen: int) -> Latents:
    z, z_logvar = (as_numbers(str(file), part).astype(np.float32) for part in read_pickles(str(file), 2))
    if z.shape != z_logvar.shape or z.shape != (len(store), zdim):
        raise RunError(
            str(file),
            f"it holds arrays of shape {z.shape} and {z_logvar.shape} for {len(store):,} particles in {store.path}",
            "convert the particles it was trained on, with the same --ind",
        )
    rows = store.columns["source_row"]  # z is in the order in which the particles were asked for
    rows = np.sort(rows) if store.info.in_file_order else rows
    return in_source_order([Latents(z, z_logvar, rows, images_seen)])


def _read_history(file: Path, last_epoch: int, num_particles: int) -> list[dict[str, Any]]:
    """Epochs as `Position` has them, from the lines of the log."""
    text = file.read_text(errors="replace") if file.is_file() else ""
    number = r"([-+.\deE]+)"
    lines = re.findall(
        rf"Epoch: (\d+) Average gen loss = {number}, KLD = {number}, total loss = {number}; Finished in (.+)", text
    )
    epochs = {}
    for epoch, recon, kld, loss, duration in lines:
        epochs[int(epoch)] = {
            "kind": "epoch",
            "step": int(epoch) * num_particles,
            "train_epoch/loss": float(loss),
            "train_epoch/recon_loss": float(recon),
            "train_epoch/kld": float(kld),
            "epoch": int(epoch),
            "perf/epoch_seconds": pd.to_timedelta(duration).total_seconds(),
        }
    return [epochs[epoch] for epoch in sorted(epochs) if epoch <= last_epoch]


def _deviation(run: RunDirectory, store: ParticleStore, latents: Latents) -> float:
    """Find how far latents are from those the run's network gives the store's first chunk, over their spread."""
    found = embed_chunks(str(run.path), store.path, 0, 1)
    difference = ((found.z - latents.of(found.source_row)) ** 2).mean()
    return float(np.sqrt(difference / (latents.z.var(axis=0).mean() + np.exp(latents.z_logvar).mean())))


def _settings(config: RunConfig, info: StoreInfo, folder: Path, run: RunDirectory) -> dict[str, Any]:
    """Their ``config.yaml``.

    Their tools look for ``cryodrgn train_vae`` in ``cmd``; what was really run stands under ``drgn_ray``.
    """
    model, training = config.model, config.training
    stack, poses, ctf = (str(folder / name) for name in (STACK_NAME, POSES_NAME, CTF_NAME))
    flags = {
        "--poses": poses,
        **({"--ctf": ctf} if info.has_ctf else {}),
        "-o": folder,
        "--zdim": model.zdim,
        "-n": training.num_epochs,
        "-b": training.batch_size,
        "--lr": training.lr,
        "--enc-layers": model.enc_layers,
        "--enc-dim": model.enc_dim,
        "--dec-layers": model.dec_layers,
        "--dec-dim": model.dec_dim,
        "--pe-type": model.pe_type,
        "--feat-sigma": model.feat_sigma,
        "--pe-dim": info.box_size // 2 if model.pe_dim is None else model.pe_dim,
        "--beta": 1 / model.zdim if model.beta is None else model.beta,
    }
    switches = {"--uninvert-data": info.data_sign == 1, "--no-window": not model.window}
    words = [str(word) for pair in flags.items() for word in pair]
    return {
        "cmd": ["cryodrgn", "train_vae", stack, *words, *(name for name, is_set in switches.items() if is_set)],
        "dataset_args": {
            "particles": stack,
            "norm": [0.0, info.hartley_std * info.scale],
            "invert_data": info.data_sign == -1,
            "ind": None,
            "keepreal": False,
            "window": model.window,
            "window_r": _WINDOW_RADIUS,
            "datadir": None,
            "ctf": ctf if info.has_ctf else None,
            "poses": poses,
            "do_pose_sgd": False,
        },
        "drgn_ray": {
            "comment": "cmd is what cryoDRGN's tools look for; the training was done by drgn_ray, as said here",
            "version": __version__,
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "run": str(run.path),
            "config": config.model_dump(),
        },
        "lattice_args": {"D": info.box_size + 1, "extent": 0.5, "ignore_DC": True},
        "model_args": {
            "qlayers": model.enc_layers,
            "qdim": model.enc_dim,
            "players": model.dec_layers,
            "pdim": model.dec_dim,
            "zdim": model.zdim,
            "encode_mode": "resid",
            "enc_mask": info.box_size // 2,
            "pe_type": model.pe_type,
            "feat_sigma": model.feat_sigma,
            "pe_dim": model.pe_dim,
            "domain": "fourier",
            "activation": "relu",
            "tilt_params": {},
        },
        "seed": training.seed,
        "time": datetime.now(),
        "version": LAYOUT,
    }


def _log(command: list[str], position: Position, epoch: int) -> str:
    """Write the lines of ``run.log`` that their tools look for."""
    lines = [
        " ".join(command),
        f"cryoDRGN {LAYOUT} is whose files these are; drgn_ray {__version__} trained and wrote them",
    ]
    total = 0.0
    for metrics in position.history:
        seconds = metrics["perf/epoch_seconds"]
        total += seconds
        lines.append(
            f"# =====> Epoch: {metrics['epoch']} Average gen loss = {metrics['train_epoch/recon_loss']:.6f}, "
            f"KLD = {metrics['train_epoch/kld']:.6f}, total loss = {metrics['train_epoch/loss']:.6f}; "
            f"Finished in {timedelta(seconds=seconds)}"
        )
    lines.append(f"Finished in {timedelta(seconds=total)} ({timedelta(seconds=total / epoch)} per epoch)")
    return "\n".join(lines) + "\n"
