"""The console script ``drgn-ray``: finds the command and runs it; heavy imports come after parsing."""

from __future__ import annotations

import errno
import importlib
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from drgn_ray import __version__

COMMANDS = {
    "demo": "simulate particles and run the whole job on them, in minutes",
    "convert": "STAR, cryoSPARC or MRC particles to a particle store; a cryoDRGN output to a run",
    "inspect": "what a STAR, CS, MRC, store or run holds, and what is suspicious about it",
    "backproject": "consensus volume, half maps and FSC of a store, or of the particles behind states of a run",
    "train": "train a network on a store, or fit a subspace",
    "tune": "search architectures, latent dimensions and other settings, many trials beside each other",
    "analyze": "latents, their PCA and k-means, and volumes of a trained run",
    "embed": "latents of every particle of a store",
    "decode": "volumes at chosen particles or latents",
    "compare": "whether runs of the same particles tell the same story",
    "landscape": "principal components, states and occupancies of volumes, for every particle",
    "volume": "sharpen, filter, resample, crop, mirror, invert or mask a map; or make a mask of it",
    "fsc": "Fourier shell correlation of two maps, and the resolution it says",
    "export": "a selection of particles back to STAR, CS, MRC; a run for cryoDRGN's tools",
    "doctor": "check machines, store, storage and MLflow before a training does",
    "ui": "open the MLflow interface on your runs",
}
# What storage refuses.
_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code: 0, 1 (we failed) or 2 (the call or the input is wrong)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    name, *rest = arguments
    if name == "--version":
        print(f"drgn-ray {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"drgn-ray: there is no command {name!r}; type one of: {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    return importlib.import_module(f"jobs.{name}").main(rest)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:{width}}  {what}" for name, what in COMMANDS.items())
    return (
        "drgn-ray: the landscape of shapes of a molecule, from cryo-EM particles with known poses.\n\n"
        f"usage: drgn-ray COMMAND [options]      drgn-ray COMMAND --help\n\n{lines}\n\n"
        "On a cluster: ray job submit --working-dir . -- python -m jobs.COMMAND [options]"
    )


def parse(form: type[Any], argv: Sequence[str] | None, name: str, description: str | None, **options: Any) -> Any:
    """Parse a command's arguments into `form` (a dataclass); a wrong call ends with exit code 2."""
    import tyro

    return tyro.cli(
        form,
        args=argv,
        prog=f"drgn-ray {name}",
        description=description,
        config=(tyro.conf.FlagCreatePairsOff,),
        **options,
    )


def run_command(body: Callable[[], None]) -> int:
    """Run a parsed command: log lines to standard output; a user's mistake is one sentence and exit code 2."""
    from drgn_ray.errors import UserError

    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout, force=True)
    for ours in ("drgn_ray", "conversions", "jobs"):
        logging.getLogger(ours).setLevel(logging.INFO)
    try:
        with _terminated_as_interrupted():
            body()
    except UserError as error:
        sys.stdout.flush()
        print(f"drgn-ray: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in _STORAGE:
            raise
        sys.stdout.flush()
        where = f"{error.filename}: " if error.filename else ""
        print(f"drgn-ray: {where}{error.strerror}; mend that, and give the same command again.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("drgn-ray: interrupted; the same command, given again, finishes it.", file=sys.stderr)
        return 130
    return 0


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM, by which clusters stop jobs, end a command as Ctrl-C does: in order, and MLflow hears of it."""
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_with(main_function: Callable[[], int]) -> NoReturn:
    """End the process of ``python -m jobs.NAME`` with the command's exit code."""
    code = main_function()
    sys.stdout.flush()
    sys.exit(code)
