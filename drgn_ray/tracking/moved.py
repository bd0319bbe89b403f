"""Runs tracked in a file beside them, where their folder was moved or copied: what names its old place follows."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from drgn_ray.tracking.location import DATABASE, artifact_root

logger = logging.getLogger(__name__)


def database_beside(run_path: Path, run_id: str) -> Path | None:
    """Find the database that knows a run: beside its directory, or beside that of its sweep."""
    for folder in run_path.absolute().parents[:2]:
        database = folder / DATABASE
        with suppress(sqlite3.Error), closing(_opened(database)) as opened:  # that cannot be read knows nothing
            if opened.execute("SELECT 1 FROM runs WHERE run_uuid = ?", [run_id]).fetchone():
                return database
    return None


def artifacts_follow(database: Path) -> None:
    """Name in a database the artifacts beside it, where those that it names were beside it once, elsewhere.

    MLflow keeps them as absolute paths, of each experiment and of each run in it.
    """
    try:
        with closing(_opened(database)) as opened, opened:
            for experiment, name, named in _experiments(opened):
                here = str(artifact_root(database.parent, name))
                if not _was_beside(named, name) or _is_of(named, database.parent) or _stayed(named, here):
                    continue
                opened.execute(
                    "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", [here, experiment]
                )
                opened.execute(
                    "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?)"
                    " WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
                    [here, len(named) + 1, experiment, len(named) + 1, f"{named}/"],
                )
                logger.info("%s: artifacts of %s were in %s, and are here from now on", database, name, named)
    except sqlite3.Error as error:  # as where it may be read alone
        logger.warning("%s: artifacts are looked for where they were before the folder moved (%s)", database, error)


def _experiments(opened: sqlite3.Connection) -> list[tuple[int, str, str]]:
    try:
        names = "SELECT experiment_id, name, artifact_location FROM experiments WHERE artifact_location IS NOT NULL"
        return opened.execute(names).fetchall()
    except sqlite3.Error as error:
        if error.sqlite_errorcode in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_NOTADB):
            return []  # MLflow makes its tables right now, or will say what is wrong with the file
        raise


def _opened(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{database.absolute().as_uri()}?mode=rw", uri=True)  # makes none


def _was_beside(named: str, experiment: str) -> bool:
    return named.endswith(str(artifact_root(Path("/"), experiment)))


def _stayed(named: str, here: str) -> bool:
    """Whether artifacts are elsewhere than the database: that moved without them, or never was beside them."""
    there = Path(named).parents[1]
    never_beside = there.exists() and not (there / DATABASE).exists()
    return not Path(here).exists() and (Path(named).exists() or never_beside)


def _is_of(named: str, runs_folder: Path) -> bool:
    """Whether artifacts are named beside these runs, if only by a link or a second mount."""
    folder = Path(named).parents[1]
    return folder.exists() and folder.samefile(runs_folder)
