"""Whether trained runs of the same particles tell the same story: other seeds, models, --zdim, halves held out.

For every pair: how many dimensions of the latents agree, how well each predicts the other, how many neighbours they
share; how far volumes agree at the same particles, and whether they change in the same way from particle to particle.
comparison.md says it in words; comparison.csv, runs.csv, latents.csv, volumes.csv and two figures hold the numbers.

drgn-ray compare runs/a runs/b runs/c -o compared/
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jobs.cli import exit_with, parse, run_command

if TYPE_CHECKING:
    from drgn_ray.analysis.run import TrainedRun
    from jobs.frame import Frame

NOTE = "comparison.md"
NUM_VOLUMES = 8


@dataclass(frozen=True)
class Arguments:
    """Arguments of ``compare``."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN RUN [RUN ...]")]
    """Two run directories or more."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])]
    """Folder for the note, tables and figures."""
    num_volumes: int = NUM_VOLUMES
    """Particles whose volumes are compared: those nearest to the centres of a k-means of the first run's latents."""
    num_workers: Annotated[int | None, tyro.conf.arg(aliases=["--workers"])] = None
    """Tasks at a time; None: as many as a cluster that runs has CPUs, or else 0: in this process, without Ray."""
    overwrite: bool = False
    """Replace a comparison that is there already."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments = parse(Arguments, argv, "compare", __doc__)
    return run_command(lambda: _compare(arguments))


def _compare(arguments: Arguments) -> None:
    from drgn_ray.analysis.run import load_run
    from drgn_ray.analysis.run_agreement import check_comparable
    from drgn_ray.errors import ConfigError
    from jobs.frame import job_frame

    runs = [load_run(path) for path in arguments.runs]
    paths = [run.directory.path.resolve() for run in runs]
    if len(runs) < 2:
        raise ConfigError("compare", "fewer than two runs are named", "pass two run directories or more")
    for path in paths:
        if paths.count(path) > 1:
            raise ConfigError(str(path), "it is named twice", "name each run once")
    if arguments.num_workers is not None and arguments.num_workers < 0:
        raise ConfigError(f"--workers {arguments.num_workers}", "it is a count", "pass 0 or more")
    output = comparison_place(arguments.output, overwrite=arguments.overwrite)
    check_comparable(runs, arguments.num_volumes)
    with job_frame(arguments.output) as frame:
        compare_into(runs, output, frame, arguments.num_volumes, arguments.num_workers)


def comparison_place(output: str, *, overwrite: bool) -> Path:
    """Where a comparison goes; refused where something else is, or another comparison that stays."""
    from drgn_ray.errors import ConfigError
    from jobs.frame import check_folder, output_path

    check_folder(output)
    if Path(output, "config.yaml").exists():  # whose mlflow.json would be lost
        raise ConfigError(f"-o {output}", "a run is here", "pass another folder")
    there = [note for note in (Path(output, NOTE),) if note.exists()]
    return output_path(output, there, overwrite=overwrite)


def compare_into(
    runs: Sequence[TrainedRun],
    output: Path,
    frame: Frame,
    num_volumes: int = NUM_VOLUMES,
    num_workers: int | None = None,
) -> None:
    """Compare, write it all beside the output, and put it in place when it is whole and told to MLflow."""
    import tempfile
    from functools import partial

    from drgn_ray.analysis.run_agreement import compare_runs
    from drgn_ray.analysis.run_report import metrics, particles_of, verdict, write_agreement
    from drgn_ray.distributed.decode import decode_runs
    from drgn_ray.tracking.reproduce import tell_command
    from drgn_ray.tracking.run import TrackedRun, open_comparison, side_by_side
    from drgn_ray.training.run_directory import RunDirectory
    from jobs.frame import submitted_job
    from jobs.pipeline import end_told, served

    directories = [run.directory for run in runs]
    there = RunDirectory(output)
    before = TrackedRun(there) if there.mlflow_file.exists() else None
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as place:
        staged = RunDirectory(Path(place, "made"))
        staged.path.mkdir()
        tracked = open_comparison(staged, output, directories)
        frame.link(served(tracked, tracked.link))
        charts = side_by_side(directories)
        with end_told(tracked):
            tell_command(tracked, submitted_job())
            decode = partial(decode_runs, Path(place), num_workers)
            found = compare_runs(runs, num_volumes, decode)
            write_agreement(staged.path, found)
            link = "" if charts is None else f"\n[Charts and settings of the runs side by side]({charts})\n"
            tracked.note((staged.path / NOTE).read_text() + link)
            tracked.metrics(metrics(found), 0)
            tracked.artifacts(staged.path)
            output.mkdir(exist_ok=True)
            for file in sorted(staged.path.iterdir(), key=lambda file: file.name == NOTE):  # last: where it is, all is
                file.replace(output / file.name)
    if before is not None:
        before.replaced_by(tracked)
    if charts is not None:
        frame.result(f"charts  {served(tracked, charts)}")
    said = [verdict(found, pair) for pair in found.latents]
    frame.result(f"latents of {particles_of(found)} were compared", *said, f"note    {output / NOTE}")


if __name__ == "__main__":
    exit_with(main)
