"""Train a model on a particle store, a network or a subspace; the same call goes on after an interruption.

drgn-ray train particles.zarr -o runs/a --zdim 8 -n 20

drgn-ray train -o runs/a            # goes on with its settings; with -n 40, for longer
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import tyro
from pydantic import ValidationError
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from drgn_ray.config import ModelConfig, RunConfig, Settings, describe, read_config
from drgn_ray.errors import ConfigError
from jobs.cli import exit_with, parse, run_command

if TYPE_CHECKING:
    from drgn_ray.particles.store import ParticleStore


@dataclass(frozen=True)
class Arguments:
    """Arguments of ``train``."""

    outdir: Annotated[str, tyro.conf.arg(aliases=["-o"])]
    """The run directory; a run that is there already goes on."""
    run: tyro.conf.OmitArgPrefixes[RunConfig]
    config: str | None = None
    """YAML file of settings; flags override it."""
    no_analysis: bool = False
    """Stop after training."""
    half_sets: bool = False
    """Train two runs, each on one half of the particles, RUN_half1 and RUN_half2, and compare them in RUN_halves: what
    one learned from its half's noise, the other does not confirm."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    return run_command(lambda: _train(_parse(argv)))


def _parse(argv: Sequence[str] | None) -> Arguments:
    first = ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    file = first.parse_known_args(argv)[0].config
    arguments = _with_defaults(argv, RunConfig() if file is None else read_config(Path(file)))
    if file is None and not arguments.run.particles:
        begun = Path(arguments.outdir) / "config.yaml"
        if begun.exists():
            arguments = _with_defaults(argv, read_config(begun))
    if arguments.run.preset == "auto":
        _refuse_choices(argv)
    try:
        return replace(arguments, run=RunConfig.model_validate(arguments.run.model_dump()))
    except ValidationError as error:
        raise ConfigError("settings", describe(error, as_flags=True), "see `drgn-ray train --help`") from error


def _with_defaults(argv: Sequence[str] | None, settings: RunConfig) -> Arguments:
    registry = ConstructorRegistry()
    registry.struct_rule(_unchecked)
    return parse(Arguments, argv, "train", __doc__, default=Arguments(tyro.MISSING, settings), registry=registry)


def _refuse_choices(argv: Sequence[str] | None) -> None:
    """Refuse flags for what the preset chooses, also those that say what is the default."""
    typed = [word.partition("=")[0].replace("_", "-") for word in (sys.argv[1:] if argv is None else argv)]
    chosen = {f"--{name.replace('_', '-')}" for name in ModelConfig.model_fields} | {"--no-window"}
    for flag in typed:
        if flag in chosen:
            raise ConfigError(f"{flag} with --preset auto", "the preset chooses the model", f"leave {flag} out")


def _unchecked(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Let tyro read settings without their rules, of which it would print what pydantic says, on many lines."""
    section = info.type
    if not (isinstance(section, type) and issubclass(section, Settings)):
        return None

    def construct(**values: Any) -> Settings:
        return section.model_construct(**values)

    construct.__doc__ = section.__doc__  # the title of its part of --help
    types, fields = get_type_hints(section, include_extras=True), section.model_fields
    defaults = {name: getattr(info.default, name, field.default) for name, field in fields.items()}
    return StructConstructorSpec(
        instantiate=construct,
        fields=tuple(
            StructFieldSpec(name, types[name], defaults[name], helptext=" ".join((field.description or "").split()))
            for name, field in fields.items()
        ),
    )


def _train(arguments: Arguments) -> None:
    from drgn_ray.particles.store import ParticleStore
    from jobs.frame import check_folder

    check_folder(arguments.outdir)
    if not arguments.run.particles:
        raise ConfigError(
            f"-o {arguments.outdir}",
            "there is no run here to go on with, and no particle store is named",
            "pass one, as in `drgn-ray train particles.zarr -o runs/a`",
        )
    store = ParticleStore(arguments.run.particles)
    config = arguments.run.resolved(len(store)).model_copy(update={"particles": store.absolute_path})

    from drgn_ray.distributed.train import check  # heavy imports come after the mistakes found without them
    from drgn_ray.training.run_directory import RunDirectory
    from jobs.frame import job_frame
    from jobs.pipeline import check_machines, train_and_finish

    check(config, store)
    resources = config.resources
    for flag, is_given in (("--await-gpus", resources.await_gpus), ("--max-workers", resources.max_workers)):
        if is_given and (config.model.is_fitted or not resources.num_workers):
            raise ConfigError(flag, "it is of networks that Ray trains", "leave it out, or pass --workers 1 or more")
    if arguments.half_sets:
        _train_halves(arguments, config, store)
        return
    run = RunDirectory(arguments.outdir)
    with job_frame(arguments.outdir) as frame, run.claimed(config):
        check_machines(config, run)
        train_and_finish(run, config, frame, analysis=not arguments.no_analysis)


def _train_halves(arguments: Arguments, config: RunConfig, store: ParticleStore) -> None:
    """Train on each half of the particles, and compare."""
    from drgn_ray.analysis.run import load_run
    from drgn_ray.analysis.run_agreement import LEAST_PARTICLES
    from drgn_ray.distributed.train import check
    from drgn_ray.errors import RunError
    from drgn_ray.training.embed import trained_zdim
    from drgn_ray.training.run_directory import RunDirectory
    from jobs.compare import compare_into, comparison_place
    from jobs.finish import finish_run
    from jobs.frame import job_frame
    from jobs.pipeline import check_machines, tracked_run, train_run

    for flag, is_given in (
        ("--no-analysis", arguments.no_analysis),
        ("--half-set", config.data.half_set is not None),
        ("--model homogeneous", config.model.model == "homogeneous"),
    ):
        if is_given:
            raise ConfigError(f"{flag} with --half-sets", "both halves' latents are compared", f"leave {flag} out")
    base = arguments.outdir.rstrip("/")
    compared = comparison_place(f"{base}_halves", overwrite=True)
    if len(store) < LEAST_PARTICLES:
        raise ConfigError("--half-sets", f"there are {len(store)} particles", f"pass {LEAST_PARTICLES} or more")
    runs = [RunDirectory(f"{base}_half{half}") for half in (1, 2)]
    halves = [config.data.model_copy(update={"half_set": half}) for half in (1, 2)]
    configs = [config.model_copy(update={"data": data}) for data in halves]
    for its_config in configs:
        check(its_config, store)
    with job_frame(f"{base}_halves") as frame, runs[0].claimed(configs[0]), runs[1].claimed(configs[1]):
        check_machines(config, RunDirectory(base))
        for run, its_config in zip(runs, configs, strict=True):
            with tracked_run(run, its_config, frame) as tracked:
                train_run(run, its_config)
                finish_run(run, tracked)
            if not trained_zdim(run, its_config, store):
                raise RunError(str(run.path), "this half found one volume and no latents", "train on all particles")
        compare_into([load_run(run.path) for run in runs], compared, frame)


if __name__ == "__main__":
    exit_with(main)
