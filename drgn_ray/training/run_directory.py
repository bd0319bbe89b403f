"""What a run directory holds, and whether a command may go on in it.

``config.yaml``, ``.lock`` (held by the driver), ``reproduce.sh``, ``run.log``, ``metrics.jsonl``, ``checkpoints/``,
``diverged.json`` (where training diverged, if it did), ``mlflow.json``, ``latents.npz``, ``mlflow_outbox/`` (what
MLflow's server was not told yet), ``analyze.N/``, ``landscape.N/``, ``start/`` (the run directory of the linear model
that a network started from).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from drgn_ray.config import RunConfig, differences, read_config, write_config
from drgn_ray.errors import ConfigError, RunError
from drgn_ray.particles.store import ParticleStore
from drgn_ray.patience import patiently
from drgn_ray.training.checkpoint import has_checkpoint, has_damaged, load_position, set_damaged_aside
from drgn_ray.training.lock import is_empty, locked

logger = logging.getLogger(__name__)
SWEEP_NAME = "sweep.json"  # what makes a folder a sweep's


class LogFile(logging.FileHandler):
    """A log file that a full disk leaves with a line less, and the console without a traceback for every line."""

    def handleError(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)

    def close(self) -> None:
        """See `logging.Handler`."""
        with suppress(OSError):
            super().close()


class RunDirectory:
    """Paths of a run."""

    def __init__(self, path: str | Path) -> None:
        if "://" in str(path):
            raise RunError(str(path), "a run directory is a folder that all machines see, not a URL", "pass a path")
        self.path = Path(path).absolute()
        self.config_file = self.path / "config.yaml"
        self.script = self.path / "reproduce.sh"
        self.log_file = self.path / "run.log"
        self.metrics_file = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.diverged_file = self.path / "diverged.json"
        self.latents_file = self.path / "latents.npz"
        self.mlflow_file = self.path / "mlflow.json"
        self.mlflow_outbox = self.path / "mlflow_outbox"
        self.start = self.path / "start"

    @contextmanager
    def claimed(self, config: RunConfig) -> Iterator[None]:
        """Begin, and be the only driver at work on the run; what is inside a sweep is its driver's.

        Raises
        ------
        RunError
            Another is at work here, or something that is not a run is here.
        """
        self._refuse_what_is_no_run()
        sweep = next((folder for folder in self.path.parents if (folder / SWEEP_NAME).exists()), None)
        with locked(self.path, "train") if sweep is None else locked(sweep, "tune"):
            self.begin(config)
            yield

    def begin(self, config: RunConfig) -> None:
        """Make the directory that of a run; one that is there already goes on if its settings agree.

        A run without any checkpoint has nothing to go on from, and is begun anew.
        """
        self._refuse_what_is_no_run()
        set_damaged_aside(self.checkpoints)
        if self.config_file.exists() and not has_checkpoint(self.checkpoints):
            if has_damaged(self.checkpoints):
                raise RunError(str(self.path), "all of its checkpoints are damaged", "train anew, in another -o")
            logger.info("%s: an earlier attempt left no checkpoint; it is begun anew", self.path)
            if differences(read_config(self.config_file), config):
                self.mlflow_file.unlink(missing_ok=True)  # MLflow's parameters of a run are for good
                self.diverged_file.unlink(missing_ok=True)
        elif self.config_file.exists():
            changed = differences(read_config(self.config_file), config)
            done = len(load_position(self.checkpoints).history)
            if not config.model.is_fitted and config.num_epochs < done:
                found = f"{done} epochs are trained already, more than {config.num_epochs}"
                raise ConfigError(str(self.path), found, f"pass --num-epochs {done} or more, or another -o")
            if "particles" in changed and self._is_of(config.particles):
                del changed["particles"]
            if changed:
                listed = ", ".join(f"{name} was {old!r} and is now {new!r}" for name, (old, new) in changed.items())
                raise ConfigError(
                    str(self.path),
                    f"a run with other settings is here ({listed})",
                    "pass another -o, or the settings it was begun with to go on",
                )
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        write_config(config, self.config_file)

    def _is_of(self, particles: str) -> bool:
        """Whether a store is what the run was trained on, which was moved."""
        return load_position(self.checkpoints).store_digest == ParticleStore(particles).digest

    def _refuse_what_is_no_run(self) -> None:
        if not self.config_file.exists() and not is_empty(self.path):
            raise RunError(str(self.path), "this directory holds something that is not a run", "pass another -o")

    def await_storage(self) -> None:
        """Wait until a run that has begun is there: without its folder it would look as one without checkpoints."""
        patiently(self.path, self.config_file.stat)

    @contextmanager
    def log_to_file(self) -> Iterator[None]:
        """Append what is logged to ``run.log`` too."""
        handler, ours = LogFile(self.log_file), logging.getLogger("drgn_ray")
        ours.addHandler(handler)
        try:
            yield
        finally:
            ours.removeHandler(handler)
            handler.close()

    def log_line(self, line: str) -> None:
        """Append a line to ``run.log`` alone."""
        with suppress(OSError), self.log_file.open("a") as log:  # the disk may be full
            log.write(f"{line}\n")

    @contextmanager
    def log_end(self) -> Iterator[None]:
        """Append to ``run.log`` what ends a training before it is done."""
        try:
            yield
        except BaseException as error:
            ended = "interrupted" if isinstance(error, KeyboardInterrupt) else f"ended: {error or type(error).__name__}"
            self.log_line(ended)
            raise

    def config(self) -> RunConfig:
        """Read the settings of an existing run."""
        if not self.config_file.exists():
            raise RunError(
                str(self.path),
                "there is no run here (no config.yaml)",
                "pass the -o directory of `drgn-ray train`",
            )
        config = read_config(self.config_file)
        if not config.particles:
            remedy = "bring back the file that was written there"
            raise RunError(str(self.config_file), "it names no particles, as that of a run does", remedy)
        return config

    def analysis(self, epoch: int) -> Path:
        """Name where the analysis after an epoch (1-based, as cryoDRGN counts) goes."""
        return self.path / f"analyze.{epoch}"

    def analyses(self) -> dict[int, Path]:
        """Analyses that there are, by epoch, ascending; what a user called ``analyze.old`` is none."""
        found = {folder.suffix[1:]: folder for folder in self.path.glob("analyze.*")}
        return {int(epoch): found[epoch] for epoch in sorted(filter(str.isdecimal, found), key=int)}

    def newest(self, pattern: str) -> list[Path]:
        """Files of the newest analysis that has any of a pattern, the last written last."""
        for folder in reversed(self.analyses().values()):
            if found := sorted(folder.glob(pattern), key=lambda file: file.stat().st_mtime):
                return found
        return []

    def landscape(self, epoch: int) -> Path:
        """Name where the landscape of volumes after an epoch goes."""
        return self.path / f"landscape.{epoch}"
