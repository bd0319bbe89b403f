"""Latents, their PCA and k-means, and volumes of a trained run, into the run directory and into MLflow.

drgn-ray analyze runs/a --ksample 20 --pc 2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from jobs.cli import exit_with, parse, run_command


@dataclass(frozen=True)
class Arguments:
    """Arguments of ``analyze``."""

    run: Annotated[str, tyro.conf.Positional]
    """The run directory."""
    ksample: int = 20
    """Clusters of k-means, each with a volume."""
    pc: int = 2
    """Principal components along which volumes are decoded."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments = parse(Arguments, argv, "analyze", __doc__)
    return run_command(lambda: _analyze(arguments))


def _analyze(arguments: Arguments) -> None:
    from drgn_ray.errors import ConfigError
    from drgn_ray.training.run_directory import RunDirectory
    from jobs.frame import job_frame
    from jobs.pipeline import analyze_run, open_tracked

    if arguments.ksample < 1 or arguments.pc < 0:
        raise ConfigError(
            f"--ksample {arguments.ksample} --pc {arguments.pc}", "they are counts", "pass positive numbers"
        )
    run = RunDirectory(arguments.run)
    config = run.config()
    with job_frame(arguments.run) as frame:
        tracked = open_tracked(run, config, frame)
        analysis = analyze_run(run, tracked, ksample=arguments.ksample, num_pcs=arguments.pc)
        tracked.end("FINISHED")
        frame.result(f"picture {analysis.folder / 'z_pca.png'}", f"volumes {analysis.kmeans_folder}")


if __name__ == "__main__":
    exit_with(main)
