"""What training tells MLflow, live."""

from __future__ import annotations

from torch import Tensor

from drgn_ray.analysis.volumes import brightest, slice_montage
from drgn_ray.models.model import Model
from drgn_ray.tracking.run import TrackedRun
from drgn_ray.training.checkpoint import Position
from drgn_ray.training.report import LogReporter, Metrics, Reporter, Reporters, warning_of
from drgn_ray.training.run_directory import RunDirectory

_EPOCH_METRIC, _WHITE, _WARNING = "epoch_done", "drgn_ray.white", "drgn_ray.warning"
LATER_IS_BRIGHTER = 1.5  # than the volume after the first epoch, at most


class MlflowReporter:
    """Metrics every few seconds and every epoch, and the slices of a decoded volume every epoch."""

    def __init__(self, tracked: TrackedRun) -> None:
        self.tracked = tracked
        self.white: float | None = None

    def begin(self, position: Position) -> None:
        """Log epochs that were finished but not logged when the run was interrupted."""
        last = self.tracked.last_step(_EPOCH_METRIC)
        for line in position.history:
            if last is not None and line["step"] > last:
                self._epoch_metrics(line["step"], {k: v for k, v in line.items() if k not in ("kind", "step")})

    def interval(self, step: int, metrics: Metrics) -> None:
        """Log the averages of a few seconds."""
        self.tracked.metrics(metrics, step)

    def epoch(self, step: int, metrics: Metrics, model: Model, z: Tensor) -> None:
        """Log an epoch and what the volume at the mean latent looks like by now."""
        self._epoch_metrics(step, metrics)
        if warning_of(metrics) or self.tracked.tag(_WARNING):
            self.tracked.set_tag(_WARNING, warning_of(metrics))
        volume = model.decode_volume(z).cpu().numpy()
        if self.white is None:  # one range for all pictures, so that they can be compared
            self.white = float(self.tracked.tag(_WHITE) or LATER_IS_BRIGHTER * brightest(volume))
            self.tracked.set_tag(_WHITE, f"{self.white:.6g}")
        self.tracked.image("volume_slices", slice_montage(volume, self.white), int(metrics["epoch"]))

    def _epoch_metrics(self, step: int, metrics: Metrics) -> None:
        named = {name: value for name, value in metrics.items() if name != "epoch"}
        self.tracked.metrics(named | {_EPOCH_METRIC: metrics["epoch"]}, step)


def make_reporter(run: RunDirectory, num_epochs: int) -> Reporter:
    """All that listens to a training run; made in the first worker's process."""
    return Reporters([LogReporter(run, num_epochs), MlflowReporter(TrackedRun(run))])
