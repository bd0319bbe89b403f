"""A trained run as an object: ``from drgn_ray import load_run``.

>>> run = load_run("runs/a")                            # doctest: +SKIP
>>> run.latents.z[:5], run.table.columns                # doctest: +SKIP
>>> volume = run.decode(run.latents.z[17])              # doctest: +SKIP
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from drgn_ray.analysis.volumes import decode
from drgn_ray.config import RunConfig
from drgn_ray.errors import ConfigError
from drgn_ray.models.model import Model
from drgn_ray.particles.store import ParticleStore
from drgn_ray.training.embed import Latents, latents_of, trained_model
from drgn_ray.training.run_directory import RunDirectory


class TrainedRun:
    """What a run learned; read when it is asked for, and then kept.

    Parameters
    ----------
    path
        The run directory.

    Raises
    ------
    UserError
        There is no run, or it lacks what is asked for.
    """

    def __init__(self, path: str | Path) -> None:
        self.directory = RunDirectory(path)
        self.config: RunConfig = self.directory.config()
        self.particles = ParticleStore(self.config.particles)

    def __repr__(self) -> str:
        return f"TrainedRun({str(self.directory.path)!r}: {self.config.model.model}, {len(self.particles):,} images)"

    @property
    def apix(self) -> float:
        """Å/px of the volumes."""
        return self.particles.info.apix

    @cached_property
    def model(self) -> Model:
        """Network or subspace, for evaluation, on a GPU if there is one."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return trained_model(self.directory, self.config, self.particles, device)

    @cached_property
    def latents(self) -> Latents:
        """Posterior of every particle: arrays ``z``, ``z_logvar`` and ``source_row``."""
        return latents_of(self.directory)

    @cached_property
    def table(self) -> pd.DataFrame:
        """`Latents.table`, with the ``cluster`` of every particle.

        Clusters are of the newest analysis; there is no such column before the first.
        """
        table = self.latents.table()
        if found := self.directory.newest("kmeans*/labels.csv"):
            table = table.merge(pd.read_csv(found[-1]).rename(columns={"label": "cluster"}), how="left")
        return table

    def decode(self, z: Float[np.ndarray, " Z"]) -> Float[np.ndarray, "D D D"]:
        """Volume (z, y, x) of a latent, on the grey scale of the source images."""
        z = np.asarray(z, np.float32)
        if z.shape != (self.model.zdim,):
            found = f"its shape is {z.shape}, and the run's latents have {self.model.zdim} dimensions"
            raise ConfigError("z", found, "pass one latent")
        return decode(self.model, z, self.particles.info)


def load_run(path: str | Path) -> TrainedRun:
    """Open a run directory of ``drgn-ray train``."""
    return TrainedRun(path)
