"""One MLflow run of one run directory: opened by whoever logs to it, found again by ``mlflow.json``."""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
from jaxtyping import UInt8
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

from drgn_ray import __version__
from drgn_ray.config import RunConfig
from drgn_ray.errors import ResourceError
from drgn_ray.tracking.location import artifact_link, compare_link, run_link, tracking_uri
from drgn_ray.training.run_directory import RunDirectory

logger = logging.getLogger(__name__)
P = ParamSpec("P")
_NOTE, _DIRECTORY = "mlflow.note.content", "drgn_ray.run_directory"  # tags
# Of a sweep: the run whose analysis is among its artifacts, the explorer there, and the run that was promoted.
SHOWN, EXPLORER, PROMOTED = "drgn_ray.winner_shown", "drgn_ray.explorer", "drgn_ray.promoted"


def _never_fatal(method: Callable[P, None]) -> Callable[P, None]:
    """Tracking that fails is said, and never ends a run: its numbers are in ``metrics.jsonl`` too."""

    @functools.wraps(method)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(*args, **kwargs)
        except (MlflowException, OSError) as error:
            logger.warning(
                "MLflow: %s failed (%s); going on without", method.__name__, " ".join(str(error).split())[:200]
            )

    return guarded


class TrackedRun:
    """Logs to the MLflow run of a run directory."""

    def __init__(self, run: RunDirectory) -> None:
        place = json.loads(run.mlflow_file.read_text())
        self.uri, self.experiment_id, self.run_id = place["tracking_uri"], place["experiment_id"], place["run_id"]
        self.client = MlflowClient(self.uri)

    @property
    def is_local(self) -> bool:
        """Whether runs are in a file, which `drgn-ray ui` shows, and not on a server."""
        return self.uri.startswith("sqlite")

    @property
    def link(self) -> str:
        """Address of the run's page."""
        return run_link(self.uri, self.experiment_id, self.run_id)

    def link_to(self, path: str) -> str:
        """Address of an artifact, for the run's note."""
        return artifact_link(self.experiment_id, self.run_id, path)

    @_never_fatal
    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log several metrics at a step (images seen)."""
        now = int(time.time() * 1000)
        self.client.log_batch(self.run_id, [Metric(name, float(value), now, step) for name, value in values.items()])

    def last_step(self, metric: str) -> int | None:
        """Find the largest step at which a metric was logged; -1 if never, None if MLflow does not answer."""
        try:
            return max((point.step for point in self.client.get_metric_history(self.run_id, metric)), default=-1)
        except MlflowException:
            return None

    @_never_fatal
    def image(self, name: str, grey: UInt8[np.ndarray, "h w"], step: int) -> None:
        """Log a picture of an epoch; MLflow shows them with a slider."""
        self.client.log_image(self.run_id, grey, key=name, step=step)

    @_never_fatal
    def artifacts(self, path: Path, folder: str | None = None) -> None:
        """Copy a file or folder to the run."""
        log = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
        log(self.run_id, str(path), folder)

    @_never_fatal
    def set_tag(self, name: str, value: str) -> None:
        """Set a tag."""
        self.client.set_tag(self.run_id, name, value)

    def tag(self, name: str) -> str | None:
        """Find a tag; None where it is not set, or MLflow does not answer."""
        try:
            return self.client.get_run(self.run_id).data.tags.get(name)
        except MlflowException:
            return None

    @_never_fatal
    def note(self, markdown: str) -> None:
        """Set the text at the top of the run's page."""
        self.client.set_tag(self.run_id, _NOTE, markdown)

    @_never_fatal
    def replaced_by(self, other: TrackedRun) -> None:
        """Say in name, note and a tag that what this run recorded was replaced in its folder."""
        run = self.client.get_run(self.run_id)
        said = f"**Replaced**: its folder holds [a later comparison]({other.link}) now."
        self.client.update_run(self.run_id, name=f"{run.info.run_name} (replaced)")
        self.client.set_tag(self.run_id, "drgn_ray.replaced_by", other.run_id)
        self.client.set_tag(self.run_id, _NOTE, f"{said}\n\n{run.data.tags.get(_NOTE, '')}")

    @_never_fatal
    def begin(self) -> None:
        """Mark the run RUNNING."""
        self.client.update_run(self.run_id, status="RUNNING")

    @_never_fatal
    def end(self, status: str) -> None:
        """Mark the run FINISHED, FAILED or KILLED."""
        self.client.set_terminated(self.run_id, status)


def open_run(
    run: RunDirectory,
    config: RunConfig,
    tags: Mapping[str, str] | None = None,
    parent: TrackedRun | None = None,
) -> TrackedRun:
    """Create the MLflow run of a run directory, or find the one it has.

    The experiment is named after the store, the run after the run directory.

    Parameters
    ----------
    parent
        The sweep whose trial it is; it is then where that is.

    Raises
    ------
    ResourceError
        The tracking server does not answer.
    """
    found = _found(run)
    if found is not None:
        return found
    tags = {_DIRECTORY: str(run.path), **(tags or {})}
    if parent is not None:
        tags["mlflow.parentRunId"] = parent.run_id
    uri = tracking_uri(run.path.parent) if parent is None else parent.uri
    with _answering(uri):
        experiment_id = (
            _experiment_of(config.particles, uri, run.path.parent) if parent is None else parent.experiment_id
        )
        return _create_run(run, uri, experiment_id, run.path.name, tags, _params(config))


def open_sweep(folder: RunDirectory, particles: str, tags: Mapping[str, str]) -> TrackedRun:
    """Create the MLflow run of a sweep over a store, or find the one its folder has.

    Raises
    ------
    ResourceError
        The tracking server does not answer.
    """
    found = _found(folder)
    if found is not None:
        return found
    uri = tracking_uri(folder.path.parent)
    with _answering(uri):
        experiment_id = _experiment_of(particles, uri, folder.path.parent)
        name = f"tune {folder.path.name}"
        return _create_run(folder, uri, experiment_id, name, {_DIRECTORY: str(folder.path), **tags})


def open_promoted(
    run: RunDirectory, config: RunConfig, sweep: TrackedRun, name: str, tags: Mapping[str, str]
) -> TrackedRun:
    """Create the MLflow run of a sweep's winner that is trained in full, beside the sweep's; or find the one it has.

    Each names the other in a tag.

    Raises
    ------
    ResourceError
        The tracking server does not answer.
    """
    tags = {_DIRECTORY: str(run.path), "drgn_ray.promoted_from": sweep.run_id, **tags}
    with _answering(sweep.uri):
        promoted = _found(run) or _create_run(run, sweep.uri, sweep.experiment_id, name, tags, _params(config))
    sweep.set_tag(PROMOTED, promoted.run_id)
    return promoted


def _found(run: RunDirectory) -> TrackedRun | None:
    if not run.mlflow_file.exists():
        return None
    tracked = TrackedRun(run)
    with _answering(tracked.uri):
        if _is_there(tracked):
            return tracked
    logger.warning("%s names an MLflow run that is gone; a new one begins", run.mlflow_file)
    return None


def _params(config: RunConfig) -> list[Param]:
    return [Param(name, str(value)) for name, value in config.flat().items()]


def _experiment_of(particles: str, uri: str, runs_folder: Path) -> str:
    return _experiment(MlflowClient(uri), Path(particles).name.removesuffix(".zarr"), uri, runs_folder)


def open_comparison(
    folder: RunDirectory, output: Path, runs: Sequence[RunDirectory], tags: Mapping[str, str]
) -> TrackedRun:
    """Create the MLflow run of a comparison of runs, in the experiment of the first.

    Parameters
    ----------
    folder
        Gets the ``mlflow.json`` that names it.
    output
        Where all of the folder will be.

    Raises
    ------
    ResourceError
        The tracking server does not answer.
    """
    first = open_run(runs[0], runs[0].config())
    compared = ",".join(tracked.run_id for tracked in _tracked(runs))
    name = " ".join(("compare", *(run.path.name for run in runs)))
    with _answering(first.uri):
        tags = {_DIRECTORY: str(output), "drgn_ray.compared_runs": compared, **tags}
        return _create_run(folder, first.uri, first.experiment_id, name, tags)


def side_by_side(runs: Sequence[RunDirectory]) -> str | None:
    """Link to MLflow's page that compares runs; None where they are not all in one experiment."""
    tracked = _tracked(runs)
    places = {(each.uri, each.experiment_id) for each in tracked}
    if len(tracked) < len(runs) or len(places) > 1:
        return None
    return compare_link(*places.pop(), [each.run_id for each in tracked])


def _tracked(runs: Sequence[RunDirectory]) -> list[TrackedRun]:
    return [TrackedRun(run) for run in runs if run.mlflow_file.exists()]


@contextmanager
def _answering(uri: str) -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        raise ResourceError(
            uri,
            f"MLflow does not answer ({' '.join(str(error).split())[:120]})",
            "start its server, or unset MLFLOW_TRACKING_URI to track in a file beside the runs",
        ) from error


def _is_there(tracked: TrackedRun) -> bool:
    try:
        tracked.client.get_run(tracked.run_id)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise
        return False
    return True


def _create_run(
    folder: RunDirectory,
    uri: str,
    experiment_id: str,
    name: str,
    tags: Mapping[str, str],
    params: Sequence[Param] = (),
) -> TrackedRun:
    """Create a run, and leave its name in a folder's ``mlflow.json``."""
    client = MlflowClient(uri)
    created = client.create_run(experiment_id, run_name=name, tags={"drgn_ray.version": __version__, **tags})
    client.log_batch(created.info.run_id, params=params)
    place: dict[str, Any] = {"tracking_uri": uri, "experiment_id": experiment_id, "run_id": created.info.run_id}
    folder.mlflow_file.write_text(json.dumps(place))
    return TrackedRun(folder)


def _experiment(client: MlflowClient, name: str, uri: str, runs_folder: Path) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    # A local database has no server to say where artifacts go, and its default depends on the working directory.
    local = str(runs_folder.absolute() / "mlartifacts" / name) if uri.startswith("sqlite") else None
    try:
        return client.create_experiment(name, artifact_location=local)
    except MlflowException:  # another run made it in the meantime
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return found.experiment_id
