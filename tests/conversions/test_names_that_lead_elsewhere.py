"""A table from a stranger reads nothing outside of its project's folder; projects as people have them are read."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from star_sets import StarSet

from conversions.inputs import read_particles
from conversions.stacks import StackSource
from drgn_ray.errors import ParticleFileError


@pytest.fixture
def named(star_set: StarSet, tmp_path: Path) -> Callable[[str], str]:
    """A RELION project whose Refine3D job names the stack of its Extract job; gives the table with another name."""
    star_set.write()
    project = tmp_path / "project"
    (project / "Extract" / "job004").mkdir(parents=True)
    (project / "Refine3D" / "job012").mkdir(parents=True)
    shutil.copy(star_set.folder / "stack.mrcs", project / "Extract" / "job004" / "stack.mrcs")
    shutil.copy(star_set.folder / "stack.mrcs", tmp_path / "secret.mrcs")

    def write(stack: str) -> str:
        star_set.particles["rlnImageName"] = [f"{1 + row % 10}@{stack}" for row in range(20)]
        return str(shutil.copy(star_set.write_table(), project / "Refine3D" / "job012" / "run_data.star"))

    return write


@pytest.mark.parametrize(
    "name", ["{}/secret.mrcs", "../../../secret.mrcs", "a/../../../../secret.mrcs", "file://{}/secret.mrcs"]
)
def test_a_name_that_leads_out_is_refused_with_what_allows_it(
    name: str, named: Callable[[str], str], tmp_path: Path
) -> None:
    star = named(name.format(tmp_path))
    with pytest.raises(ParticleFileError, match="lies outside of .*; pass --datadir .*, or a folder above"):
        read_particles(star)
    if "://" not in name:
        assert len(read_particles(star, datadir=str(tmp_path)).index_of) == 20  # who says so may


@pytest.mark.parametrize("prefix", ["", "simplecache::"])
def test_no_address_is_asked_because_a_table_names_it(prefix: str, named: Callable[[str], str]) -> None:
    asked: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        star = named(f"{prefix}http://127.0.0.1:{server.server_port}/secret.mrcs")
        with pytest.raises(ParticleFileError, match="lies outside of"):
            read_particles(star)
        server.shutdown()
    assert asked == []


@pytest.mark.parametrize(
    "name", ["Extract/job004/stack.mrcs", "Extract/linked/stack.mrcs", "./Extract/job004/stack.mrcs"]
)
def test_a_relion_project_is_read_also_through_links(name: str, named: Callable[[str], str], tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "project" / "Extract" / "job004", elsewhere)
    os.symlink(elsewhere, tmp_path / "project" / "Extract" / "linked")
    assert len(read_particles(named(name)).index_of) == 20


def test_names_from_the_tables_folder_are_found_in_the_datadir(named: Callable[[str], str], tmp_path: Path) -> None:
    """As Warp writes them, whose tables lie beside the folder of its stacks."""
    star = named("../../Extract/job004/stack.mrcs")
    assert len(read_particles(star, datadir=str(tmp_path / "project")).index_of) == 20


def test_a_list_of_stacks_is_held_to_the_same(named: Callable[[str], str], tmp_path: Path) -> None:
    named("stack.mrcs")
    (tmp_path / "project" / "list.txt").write_text("../secret.mrcs\n")
    with pytest.raises(ParticleFileError, match="lies outside of"):
        StackSource(str(tmp_path / "project" / "list.txt"), None)
