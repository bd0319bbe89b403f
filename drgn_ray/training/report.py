"""What training tells the world: lines in the log, lines in ``metrics.jsonl``, and whoever else listens."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from drgn_ray.models.model import Model
from drgn_ray.patience import append_line, patiently, write_whole
from drgn_ray.progress import format_duration
from drgn_ray.training.checkpoint import Position
from drgn_ray.training.run_directory import RunDirectory

logger = logging.getLogger(__name__)
Metrics = Mapping[str, float]
SKIPPED = "train/skipped_steps"
_SHOWN = (
    ("train_epoch/loss", "loss"),
    ("train_epoch/recon_loss", "recon"),
    ("train_epoch/kld", "kld"),
    ("val/loss", "val loss"),
)


class Reporter(Protocol):
    """Listens to the first worker; `step` is the number of images seen."""

    def begin(self, position: Position) -> None:
        """Training starts or goes on from here; the history up to here is known to be true."""

    def interval(self, step: int, metrics: Metrics) -> None:
        """Averages since the last call, every few seconds."""

    def epoch(self, step: int, metrics: Metrics, model: Model, z: Tensor) -> None:
        """Hear that an epoch ended; `z` is a typical latent to decode."""


def warning_of(metrics: Metrics) -> str:
    """Say what is wrong with an epoch; empty where nothing is."""
    if metrics.get(SKIPPED):
        return f"{metrics[SKIPPED]} steps were left out so far, since their gradients were no numbers; see run.log"
    if metrics.get("latent/active_dims") == 0 and metrics["epoch"] > 1:
        return "latents collapsed: no dimension tells particles apart; lower --beta, or train longer"
    return ""


MakeReporter = Callable[[], Reporter]


class Reporters:
    """Several reporters as one."""

    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self.reporters = reporters

    def begin(self, position: Position) -> None:
        """See `Reporter.begin`."""
        for reporter in self.reporters:
            reporter.begin(position)

    def interval(self, step: int, metrics: Metrics) -> None:
        """See `Reporter.interval`."""
        for reporter in self.reporters:
            reporter.interval(step, metrics)

    def epoch(self, step: int, metrics: Metrics, model: Model, z: Tensor) -> None:
        """See `Reporter.epoch`."""
        for reporter in self.reporters:
            reporter.epoch(step, metrics, model, z)


class LogReporter:
    """One line every few seconds and one an epoch, in the log and in ``metrics.jsonl``."""

    def __init__(self, run: RunDirectory, num_epochs: int) -> None:
        self.run, self.num_epochs = run, num_epochs

    def begin(self, position: Position) -> None:
        """Drop lines beyond the checkpoint, which will be trained again; its history is the truth on epochs."""
        text = self.run.metrics_file.read_text() if self.run.metrics_file.exists() else ""
        whole = text[: text.rfind("\n") + 1].splitlines()  # a line without its end is of a process that was killed
        kept = [
            line
            for line in map(json.loads, whole)
            if line["step"] <= position.images_seen and line["kind"] == "interval"
        ]
        merged = sorted([*kept, *position.history], key=lambda line: (line["step"], line["kind"] == "epoch"))
        write_whole(self.run.metrics_file, "".join(json.dumps(line) + "\n" for line in merged))

    def interval(self, step: int, metrics: Metrics) -> None:
        """Write a line of progress."""
        self._append({"kind": "interval", "step": step, **metrics})
        if "train/loss" not in metrics:  # a linear fit says itself what it found
            return
        epoch = math.ceil(metrics["epoch"])  # whose last images are of it, and not the first of the next
        logger.info(
            "epoch %d/%d  %3.0f%%  %s images/s  recon %.4f  kld %.2f  loss %.4f  ETA %s",
            epoch,
            self.num_epochs,
            100 * (metrics["epoch"] - epoch + 1),
            f"{metrics['perf/images_per_second']:,.0f}",
            metrics["train/recon_loss"],
            metrics["train/kld"],
            metrics["train/loss"],
            format_duration(metrics["perf/eta_seconds"]),
        )

    def epoch(self, step: int, metrics: Metrics, model: Model, z: Tensor) -> None:
        """Write the epoch's line."""
        del model, z
        self._append({"kind": "epoch", "step": step, **metrics})
        losses = "".join(f"  {label} {metrics[name]:.4f}" for name, label in _SHOWN if name in metrics)
        logger.info(
            "epoch %d/%d done%s  %s",
            metrics["epoch"],
            self.num_epochs,
            losses,
            format_duration(metrics["perf/epoch_seconds"]),
        )
        if warning := warning_of(metrics):
            logger.warning(warning)

    def _append(self, line: Mapping[str, object]) -> None:
        def append() -> None:
            with self.run.metrics_file.open("ab") as file:
                append_line(file.fileno(), json.dumps(line))

        patiently(self.run.metrics_file, append)
