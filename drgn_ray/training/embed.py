"""The latent of every particle: a pass of its own, complete whatever training dropped."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from drgn_ray.config import RunConfig
from drgn_ray.errors import ConfigError, RunError
from drgn_ray.models.linear import LinearSubspace
from drgn_ray.models.model import Model
from drgn_ray.particles.loader import stream_rows
from drgn_ray.particles.store import ParticleStore
from drgn_ray.training.checkpoint import has_checkpoint, load_position, load_weights
from drgn_ray.training.loop import model_for, particle_order
from drgn_ray.training.run_directory import RunDirectory

BATCH_SIZE = 256


class Latents(NamedTuple):
    """Posterior of every particle, in the order of the source table.

    Attributes
    ----------
    z, z_logvar
        Mean and log-variance.
    source_row
        0-based row of the source table.
    images_seen
        Of the checkpoint that they are of.
    """

    z: Float[np.ndarray, "N Z"]
    z_logvar: Float[np.ndarray, "N Z"]
    source_row: Int[np.ndarray, " N"]
    images_seen: int

    def of(self, source_rows: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n Z"]:
        """Latents of particles named by their source row."""
        return self.z[self.rows_of(source_rows)]

    def rows_of(self, source_rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Rows of the latents of particles named by their source row."""
        where = np.searchsorted(self.source_row, source_rows)
        found = (where < len(self.source_row)) & (
            self.source_row[np.minimum(where, len(self.source_row) - 1)] == source_rows
        )
        if not found.all():
            raise ConfigError(
                f"particle {source_rows[~found][0]}",
                f"it is not among the run's {len(self.source_row):,} particles",
                f"pass rows between {self.source_row[0]} and {self.source_row[-1]}",
            )
        return where

    def table(self) -> pd.DataFrame:
        """Return a row for every particle: ``source_row``, ``z0``, ``z1``, ..., ``z0_logvar``, ..."""
        columns = {f"z{i}": column for i, column in enumerate(self.z.T)}
        columns |= {f"z{i}_logvar": column for i, column in enumerate(self.z_logvar.T)}
        return pd.DataFrame({"source_row": self.source_row, **columns})

    def save(self, path: Path) -> None:
        """Write as ``.npz``, and the `table` as ``.parquet`` beside it."""
        partial = path.with_name(f".{path.name}.partial.npz")
        np.savez(partial, **self._asdict())
        table = partial.with_suffix(".parquet")
        self.table().to_parquet(table)
        table.replace(path.with_suffix(".parquet"))
        partial.replace(path)


def load_latents(path: Path) -> Latents:
    """Read what `Latents.save` wrote."""
    if not path.exists():
        raise RunError(str(path), "the latents are not there yet", f"type `drgn-ray embed {path.parent}`")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Latents(arrays["z"], arrays["z_logvar"], arrays["source_row"], int(arrays["images_seen"]))
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
        raise RunError(
            str(path), "the latents are damaged, or of an older version", f"type `drgn-ray embed {path.parent}`"
        ) from error


def latents_of(run: RunDirectory) -> Latents:
    """Read a run's latents, which must be those of its newest checkpoint."""
    latents = load_latents(run.latents_file)
    newest = load_position(run.checkpoints).images_seen
    if latents.images_seen != newest:
        raise RunError(
            str(run.latents_file),
            f"the latents are of a checkpoint after {latents.images_seen:,} images, and the newest is after {newest:,}",
            f"type `drgn-ray analyze {run.path}`, or `drgn-ray embed {run.path}` for the latents alone",
        )
    return latents


def trained_model(run: RunDirectory, config: RunConfig, store: ParticleStore, device: torch.device) -> Model:
    """Load the model of a run's newest checkpoint, for evaluation."""
    model = model_for(config, store)
    load_weights(run.checkpoints, model)
    return model.to(device).eval()


def trained_start(run: RunDirectory, store: ParticleStore) -> LinearSubspace | None:
    """Load the linear model that a run started from, if it started from any."""
    start = RunDirectory(run.start)
    if run.config().model.start == "none" or not has_checkpoint(start.checkpoints):
        return None
    model = trained_model(start, start.config(), store, torch.device("cpu"))
    assert isinstance(model, LinearSubspace)
    return model


def pending_start(run: RunDirectory, store: ParticleStore) -> LinearSubspace | None:
    """Load the linear model that a run is about to start from; None once it has begun."""
    return None if has_checkpoint(run.checkpoints) else trained_start(run, store)


def trained_zdim(run: RunDirectory, config: RunConfig, store: ParticleStore) -> int:
    """Dimension of a run's latents: 0 where it has one volume for all particles."""
    model = model_for(config, store)
    if config.model.is_fitted and has_checkpoint(run.checkpoints):  # it is found, not given
        load_weights(run.checkpoints, model)
    return model.zdim


def trained_epochs(run: RunDirectory, config: RunConfig, store: ParticleStore) -> int:
    """Whole epochs that the newest checkpoint has seen."""
    return load_position(run.checkpoints).next_slice // particle_order(config, store).slices_per_epoch


def check_fits(trained_on: ParticleStore, other: ParticleStore) -> None:
    """Refuse to embed particles that the network was not made for."""
    mine, its = trained_on.info, other.info
    if mine.has_ctf != its.has_ctf:
        raise RunError(
            other.path,
            f"its images are {'with' if its.has_ctf else 'without'} CTF, unlike those of the network",
            "convert them as those it was trained on",
        )
    if mine.box_size != its.box_size or not np.isclose(mine.apix, its.apix, rtol=0.01):
        raise RunError(
            other.path,
            f"its images have {its.box_size} px of {its.apix:.4g} Å, not {mine.box_size} px of {mine.apix:.4g} Å",
            f"convert those particles with -D {mine.box_size} to the same pixel size",
        )


@torch.inference_mode()
def embed_chunks(run_path: str, store_path: str, first_chunk: int, last_chunk: int) -> Latents:
    """Latents of a range of chunks, in the order of the store."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run, store = RunDirectory(run_path), ParticleStore(store_path)
    config = run.config()
    model = trained_model(run, config, store, device)
    parts = []
    for batch in stream_rows(store, range(first_chunk, last_chunk), BATCH_SIZE):
        z_mu, z_logvar = model.encode({name: values.to(device) for name, values in batch.items()})
        parts.append((z_mu.cpu().numpy(), z_logvar.cpu().numpy(), batch["source_row"].numpy()))
    z, z_logvar, source_row = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Latents(z, z_logvar, source_row, load_position(run.checkpoints).images_seen)


def in_source_order(parts: list[Latents]) -> Latents:
    """Put the ranges together."""
    z, z_logvar, source_row = (np.concatenate(columns) for columns in zip(*(part[:3] for part in parts), strict=True))
    order = np.argsort(source_row, kind="stable")
    # Where training went on in the meantime, they are not of the newest checkpoint, as `latents_of` will say.
    images_seen = min(part.images_seen for part in parts)
    return Latents(z[order], z_logvar[order], source_row[order], images_seen)
