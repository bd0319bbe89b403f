"""Simulate a molecule that moves, and run the whole job on it: convert, train on Ray, analyse, compare with the truth.

drgn-ray demo
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jobs.cli import exit_with, parse, run_command


@dataclass(frozen=True)
class Arguments:
    """Arguments of ``demo``."""

    outdir: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "demo"
    """Folder for the particles, the store and the run."""
    num_particles: int = 4000
    """Particles to simulate."""
    num_epochs: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 12
    """Passes over the particles."""
    num_workers: Annotated[int, tyro.conf.arg(aliases=["--workers"])] = 1
    """Training processes; 0 trains in this process, without Ray."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments = parse(Arguments, argv, "demo", __doc__)
    return run_command(lambda: _demo(arguments))


def _demo(arguments: Arguments) -> None:
    from conversions.driver import Options, convert
    from conversions.inputs import read_particles
    from conversions.simulated import STAR_NAME, read_truth, write_simulated_particles
    from drgn_ray.config import DataConfig, ModelConfig, ResourcesConfig, RunConfig, TrainingConfig
    from drgn_ray.errors import ConfigError
    from drgn_ray.particles.store import ParticleStore, StoreWriter
    from drgn_ray.training.run_directory import RunDirectory
    from jobs.finish import EXPLORER, analyze_run
    from jobs.frame import check_folder, job_frame
    from jobs.pipeline import tracked_run, train_run

    check_folder(arguments.outdir)
    folder = Path(arguments.outdir).absolute()
    store_path = folder / "particles.zarr"
    with job_frame(arguments.outdir) as frame:
        if not (folder / STAR_NAME).exists():
            write_simulated_particles(folder, arguments.num_particles)
        found = len(read_truth(folder).arm_angle)
        if found != arguments.num_particles:
            raise ConfigError(f"--num-particles {arguments.num_particles}", f"{folder} has {found}", "pass another -o")
        if not store_path.exists() or StoreWriter(str(store_path)).unfinished_info() is not None:
            command = f"drgn-ray convert {folder / STAR_NAME} -o {store_path} -D 32"
            table = read_particles(str(folder / STAR_NAME))
            convert(table, Options(str(store_path), 32, "float16", None, False, None, command))
        store = ParticleStore(store_path)
        config = RunConfig(
            particles=store.absolute_path,
            data=DataConfig(val_fraction=0.05),
            model=ModelConfig(zdim=4, enc_dim=128, dec_dim=128),
            training=TrainingConfig(num_epochs=arguments.num_epochs, lr=1e-3),
            resources=ResourcesConfig(num_workers=arguments.num_workers),
        )
        run = RunDirectory(folder / "runs" / "first")
        with run.claimed(config), tracked_run(run, config, frame) as tracked:
            train_run(run, config)
            analysis = analyze_run(run, tracked)
        frame.result(*_compare(run, read_truth(folder), store, analysis))
        frame.result(
            f"explorer {analysis.folder / EXPLORER}  (open it in a browser)",
            f"volumes  {analysis.kmeans_folder}  (in ChimeraX: open vol_*.mrc)",
            f"latents  {run.latents_file}",
        )


def _compare(run, truth, store, analysis) -> list[str]:
    """Lines on how the result agrees with the truth."""
    import mrcfile
    import numpy as np

    from drgn_ray.analysis.agreement import continuous_agreement, discrete_agreement, volume_correlation
    from drgn_ray.analysis.volumes import volume_name
    from drgn_ray.training.embed import latents_of

    latents, info = latents_of(run), store.info
    arm = continuous_agreement(latents.z, truth.arm_angle[latents.source_row])
    cap = discrete_agreement(latents.z, truth.has_cap[latents.source_row])
    guess = max(truth.has_cap.mean(), 1 - truth.has_cap.mean())
    rows = latents.source_row[analysis.clusters.particles]
    true = [truth.volume(int(row), info.box_size, info.apix) for row in rows]
    decoded = [mrcfile.read(analysis.kmeans_folder / volume_name(index)) for index in range(len(rows))]
    own = np.mean([volume_correlation(d, t) for d, t in zip(decoded, true, strict=True)])
    average = np.mean([volume_correlation(np.mean(decoded, axis=0), t) for t in true])
    return [
        "agreement with the truth:",
        f"  turning arm     Spearman correlation of the true angle with z: {arm:.3f} (chance 0, perfect 1)",
        f"  cap on or off   told right by z for {cap:.1%} of the particles (chance {guess:.1%})",
        f"  volumes         correlation of {len(rows)} decoded volumes with the true ones: {own:.3f}"
        f" (one average volume for all: {average:.3f})",
    ]


if __name__ == "__main__":
    exit_with(main)
