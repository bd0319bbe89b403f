"""Open the MLflow interface on your runs, on this machine only.

drgn-ray ui runs
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from jobs.cli import exit_with, parse, run_command


@dataclass(frozen=True)
class Arguments:
    """Arguments of ``ui``."""

    runs: Annotated[str, tyro.conf.Positional] = "runs"
    """The folder that holds the run directories."""
    port: int = 5000
    """Port on this machine."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments = parse(Arguments, argv, "ui", __doc__)
    return run_command(lambda: _serve(arguments))


def _serve(arguments: Arguments) -> None:
    from contextlib import suppress
    from pathlib import Path

    from drgn_ray.tracking.ui import serve

    with suppress(KeyboardInterrupt):  # which is how it is to end
        serve(Path(arguments.runs), arguments.port)


if __name__ == "__main__":
    exit_with(main)
