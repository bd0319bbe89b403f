"""One MLflow run of one run directory: opened by whoever logs to it, found again by ``mlflow.json``."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten

import numpy as np
from jaxtyping import UInt8
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

from drgn_ray import __version__
from drgn_ray.config import RunConfig
from drgn_ray.errors import ResourceError, RunError
from drgn_ray.patience import write_whole
from drgn_ray.tracking.location import (
    artifact_link,
    artifact_root,
    compare_link,
    local_database,
    local_uri,
    run_link,
    tracking_uri,
)
from drgn_ray.tracking.moved import artifacts_follow, database_beside
from drgn_ray.tracking.outbox import RETRY_SECONDS, Message, Outbox
from drgn_ray.training.run_directory import RunDirectory

logger = logging.getLogger(__name__)
_TRIED = "drgn-ray doctor"  # experiment of runs that are made to see whether they can be, and deleted
ERROR = "drgn_ray.error"  # tag: how a run that did not finish ended
_NOTE, _DIRECTORY = "mlflow.note.content", "drgn_ray.run_directory"  # tags
# MLflow itself would try for minutes while training waits; what it misses is told later (`Outbox`).
_OF_MLFLOW = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # we try again ourselves, and nothing waits
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # our log begins with the link
}
# Of a sweep: the run whose analysis is among its artifacts, the explorer there, and the run that was promoted.
SHOWN, EXPLORER, PROMOTED = "drgn_ray.winner_shown", "drgn_ray.explorer", "drgn_ray.promoted"


class TrackedRun:
    """Logs to the MLflow run of a run directory; while MLflow is away, the directory keeps what it should know.

    Tracking never ends a run.
    """

    def __init__(self, run: RunDirectory) -> None:
        try:
            place = json.loads(run.mlflow_file.read_text())
            self.uri, self.experiment_id, self.run_id = place["tracking_uri"], place["experiment_id"], place["run_id"]
        except (ValueError, TypeError, KeyError) as error:
            remedy = "delete it, and a new MLflow run begins with the next command"
            raise RunError(str(run.mlflow_file), "it names no MLflow run", remedy) from error
        if local_database(self.uri) and (beside := database_beside(run.path, self.run_id)):
            self.uri = local_uri(beside.parent)
        self.path = run.path
        self.client = _client(self.uri)
        self.outbox = Outbox(run.mlflow_outbox, self._deliver)

    @property
    def link(self) -> str:
        """Address of the run's page."""
        return run_link(self.uri, self.experiment_id, self.run_id)

    def link_to(self, path: str) -> str:
        """Address of an artifact, for the run's note."""
        return artifact_link(self.experiment_id, self.run_id, path)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log several metrics at a step (images seen)."""
        numbers = {name: float(value) for name, value in values.items()}
        self.outbox.put({"what": "metrics", "values": numbers, "step": step, "time": _now()})

    def last_step(self, metric: str) -> int | None:
        """Find the largest step at which a metric was logged; -1 if never, None if MLflow does not answer."""
        if self.outbox.flush():  # what waits may be of this metric
            return None
        try:
            return max((point.step for point in self.client.get_metric_history(self.run_id, metric)), default=-1)
        except MlflowException:
            return None

    def image(self, name: str, grey: UInt8[np.ndarray, "h w"], step: int) -> None:
        """Log a picture of an epoch; MLflow shows them with a slider."""
        self.outbox.put({"what": "image", "name": name, "rows": grey.tolist(), "step": step})

    def artifacts(self, path: Path, folder: str | None = None) -> None:
        """Copy a file or folder to the run."""
        inside = path.relative_to(self.path) if path.is_relative_to(self.path) else path  # where it may move to
        self.outbox.put({"what": "artifacts", "path": str(inside), "folder": folder})

    def set_tag(self, name: str, value: str) -> None:
        """Set a tag."""
        self.outbox.put({"what": "tag", "name": name, "value": value})

    def tag(self, name: str) -> str | None:
        """Find a tag; None where it is not set, or MLflow does not answer."""
        try:
            return self.client.get_run(self.run_id).data.tags.get(name)
        except MlflowException:
            return None

    def particles(self, store: str, digest: str) -> None:
        """Say which particles are used; MLflow lists them with its runs as a dataset."""
        self.outbox.put({"what": "particles", "store": store, "digest": digest})

    def note(self, markdown: str) -> None:
        """Set the text at the top of the run's page."""
        self.set_tag(_NOTE, markdown)

    def replaced_by(self, other: TrackedRun) -> None:
        """Say in name, note and a tag that what this run recorded was replaced in its folder."""
        self.outbox.put({"what": "replaced", "by": other.run_id, "link": other.link})

    def begin(self) -> None:
        """Mark the run RUNNING."""
        self.outbox.put({"what": "status", "status": "RUNNING"})

    def end(self, status: str) -> None:
        """Mark the run FINISHED, FAILED or KILLED."""
        self.outbox.put({"what": "status", "status": status, "time": _now()})
        if waiting := self.outbox.flush(now=True):
            said = "MLflow does not answer: %d messages wait in %s, and are told by the next command on the run"
            logger.warning(said, waiting, self.outbox.folder)

    def _deliver(self, message: Message) -> None:
        match message:
            case {"what": "metrics", "values": values, "step": step, "time": when}:
                self.client.log_batch(self.run_id, [Metric(name, each, when, step) for name, each in values.items()])
            case {"what": "image", "name": name, "rows": rows, "step": step}:
                self.client.log_image(self.run_id, np.array(rows, np.uint8), key=name, step=step)
            case {"what": "artifacts", "path": path, "folder": folder}:
                found = self.path / path
                log = self.client.log_artifacts if found.is_dir() else self.client.log_artifact
                log(self.run_id, str(found), folder)
            case {"what": "tag", "name": name, "value": value}:
                self.client.set_tag(self.run_id, name, value)
            case {"what": "particles", "store": store, "digest": digest}:
                self.client.log_inputs(self.run_id, [_dataset(store, digest)])
            case {"what": "status", "status": "RUNNING"}:
                self.client.update_run(self.run_id, status="RUNNING")
                if ERROR in self.client.get_run(self.run_id).data.tags:  # of the command before, which ended so
                    self.client.delete_tag(self.run_id, ERROR)
            case {"what": "status", "status": status, "time": when}:
                self.client.set_terminated(self.run_id, status, when)
            case {"what": "replaced", "by": by, "link": link}:
                self._say_replaced(by, link)
            case _:
                raise AssertionError(message)

    def _say_replaced(self, by: str, link: str) -> None:
        run = self.client.get_run(self.run_id)
        said = f"**Replaced**: its folder holds [a later comparison]({link}) now."
        self.client.update_run(self.run_id, name=f"{run.info.run_name} (replaced)")
        self.client.set_tag(self.run_id, "drgn_ray.replaced_by", by)
        self.client.set_tag(self.run_id, _NOTE, f"{said}\n\n{run.data.tags.get(_NOTE, '')}")


def _dataset(store: str, digest: str) -> DatasetInput:
    """Describe a store for MLflow, whose digests have at most 36 letters."""
    where = json.dumps({"uri": store})
    name = Path(store).name
    return DatasetInput(Dataset(name, digest[:36], "particle store", where), [InputTag("mlflow.data.context", "train")])


def _client(uri: str) -> MlflowClient:
    logging.getLogger("mlflow.store").setLevel(logging.CRITICAL)  # pages of traceback of what we say in a line
    os.environ.update({name: value for name, value in _OF_MLFLOW.items() if name not in os.environ})
    if (database := local_database(uri)) and database.exists():
        artifacts_follow(database)
    return MlflowClient(uri)


def _now() -> int:
    return int(time.time() * 1000)


def open_run(
    run: RunDirectory,
    config: RunConfig,
    parent: TrackedRun | None = None,
    patience: float = 0,
) -> TrackedRun:
    """Create the MLflow run of a run directory, or find the one it has.

    The experiment is named after the store, the run after the run directory.

    Parameters
    ----------
    parent
        The sweep whose trial it is; it is then where that is.
    patience
        Seconds to wait for a server that does not answer, where there is no run yet.

    Raises
    ------
    ResourceError
        The tracking server does not answer.
    """
    found = _found(run)
    if found is not None:
        return found
    tags = {_DIRECTORY: str(run.path)}
    if parent is not None:
        tags["mlflow.parentRunId"] = parent.run_id
    uri = tracking_uri(run.path.parent) if parent is None else parent.uri
    _wait_for(uri, patience)
    with _answering(uri):
        experiment_id = (
            _experiment_of(config.particles, uri, run.path.parent) if parent is None else parent.experiment_id
        )
        return _create_run(run, uri, experiment_id, run.path.name, tags, _params(config))


def open_sweep(folder: RunDirectory, particles: str) -> TrackedRun:
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
        return _create_run(folder, uri, experiment_id, name, {_DIRECTORY: str(folder.path)})


def open_promoted(run: RunDirectory, config: RunConfig, sweep: TrackedRun, name: str) -> TrackedRun:
    """Create the MLflow run of a sweep's winner that is trained in full, beside the sweep's; or find the one it has.

    Each names the other in a tag.

    Raises
    ------
    ResourceError
        The tracking server does not answer.
    """
    tags = {_DIRECTORY: str(run.path), "drgn_ray.promoted_from": sweep.run_id}
    with _answering(sweep.uri):
        promoted = _found(run) or _create_run(run, sweep.uri, sweep.experiment_id, name, tags, _params(config))
    sweep.set_tag(PROMOTED, promoted.run_id)
    return promoted


def try_tracking(runs_folder: Path) -> str:
    """Make a run with a metric and an artifact where runs of this folder are tracked, and delete it; say where that is.

    Raises
    ------
    ResourceError
        The tracking server, or its store of artifacts, does not take it.
    """
    uri = tracking_uri(runs_folder)
    if (database := local_database(uri)) and not database.exists():
        return f"runs will be tracked in {uri}"  # making its tables takes seconds
    with _answering(uri):
        client = _client(uri)
        run_id = client.create_run(_experiment(client, _TRIED, uri, runs_folder)).info.run_id
        try:
            client.log_metric(run_id, "written", 1.0)
            client.log_text(run_id, "written", "written.txt")
        except Exception as error:  # stores of artifacts raise what their own libraries have
            found = f"MLflow takes no metrics or no artifacts ({_said(error)})"
            raise ResourceError(
                uri, found, "mend its artifact store (`mlflow server --artifacts-destination`)"
            ) from error
        finally:
            client.delete_run(run_id)
    return f"{uri} takes runs, metrics and artifacts"


def _found(run: RunDirectory) -> TrackedRun | None:
    if not run.mlflow_file.exists():
        return None
    tracked = TrackedRun(run)
    try:
        directory = _directory_told(tracked)
    except MlflowException as error:
        logger.warning("MLflow does not answer (%s); going on, and telling it later", _said(error))
        return tracked
    if directory is None:
        logger.warning("%s names an MLflow run that is gone; a new one begins", run.mlflow_file)
        return None
    moved = directory != run.path and not (directory.exists() and directory.samefile(run.path))
    if moved and _is_tracked_as(directory, tracked):
        logger.warning("%s is a copy of %s, whose MLflow run it names; a new one begins", run.path, directory)
        return None
    tracked.outbox.flush(now=True)
    if moved:
        logger.info("%s was %s, and goes on in the same MLflow run", run.path, directory)
        tracked.set_tag(_DIRECTORY, str(run.path))
        _write_place(run, tracked.uri, tracked.experiment_id, tracked.run_id)
    return tracked


def _params(config: RunConfig) -> list[Param]:
    return [Param(name, str(value)) for name, value in config.flat().items()]


def _experiment_of(particles: str, uri: str, runs_folder: Path) -> str:
    return _experiment(_client(uri), Path(particles).name.removesuffix(".zarr"), uri, runs_folder)


def open_comparison(folder: RunDirectory, output: Path, runs: Sequence[RunDirectory]) -> TrackedRun:
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
        tags = {_DIRECTORY: str(output), "drgn_ray.compared_runs": compared}
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
        if local_database(uri):
            raise ResourceError(
                uri, f"it cannot be written ({_said(error)})", "mend that, or use another folder"
            ) from error
        if isinstance(error, UnsupportedModelRegistryStoreURIException):
            remedy = "set the address of its server, as in http://10.0.0.5:5000, or unset it to track in a file"
            raise ResourceError(f"MLFLOW_TRACKING_URI={uri}", "MLflow knows no such kind of place", remedy) from error
        raise ResourceError(
            uri,
            f"MLflow does not answer ({_said(error)})",
            "start its server, or, on one machine, unset MLFLOW_TRACKING_URI to track in a file beside the runs",
        ) from error


def _wait_for(uri: str, patience: float) -> None:
    """Wait until a server answers, or patience is at an end."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        try:
            _client(uri).search_experiments(max_results=1)
        except MlflowException as error:
            logger.warning("MLflow does not answer (%s); asking again in %g s", _said(error), RETRY_SECONDS)
            time.sleep(RETRY_SECONDS)
        else:
            return


def _said(error: Exception) -> str:
    return shorten(str(error), 300)


def _directory_told(tracked: TrackedRun) -> Path | None:
    """Find the directory that MLflow knows a run by; None where it knows no such run."""
    if (database := local_database(tracked.uri)) and not database.exists():  # which would be made anew
        return None
    try:
        return Path(tracked.client.get_run(tracked.run_id).data.tags.get(_DIRECTORY, tracked.path))
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise
        return None


def _is_tracked_as(directory: Path, tracked: TrackedRun) -> bool:
    """Whether another directory is tracked in the same run."""
    if not RunDirectory(directory).mlflow_file.exists():
        return False
    other = TrackedRun(RunDirectory(directory))
    return (other.uri, other.run_id) == (tracked.uri, tracked.run_id)


def _create_run(
    folder: RunDirectory,
    uri: str,
    experiment_id: str,
    name: str,
    tags: Mapping[str, str],
    params: Sequence[Param] = (),
) -> TrackedRun:
    """Create a run, and leave its name in a folder's ``mlflow.json``."""
    client = _client(uri)
    created = client.create_run(experiment_id, run_name=name, tags={"drgn_ray.version": __version__, **tags})
    client.log_batch(created.info.run_id, params=params)
    _write_place(folder, uri, experiment_id, created.info.run_id)
    return TrackedRun(folder)


def _write_place(folder: RunDirectory, uri: str, experiment_id: str, run_id: str) -> None:
    place = {"tracking_uri": uri, "experiment_id": experiment_id, "run_id": run_id}
    write_whole(folder.mlflow_file, json.dumps(place))


def _experiment(client: MlflowClient, name: str, uri: str, runs_folder: Path) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    # A local database has no server to say where artifacts go, and its default depends on the working directory.
    local = str(artifact_root(runs_folder, name)) if local_database(uri) else None
    try:
        return client.create_experiment(name, artifact_location=local)
    except MlflowException:  # another run made it in the meantime
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return found.experiment_id
