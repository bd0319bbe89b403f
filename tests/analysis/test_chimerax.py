"""Scripts for ChimeraX name files that are there, at levels and in colours that fit."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from drgn_ray.analysis.chimerax import colours, write_gallery, write_series
from drgn_ray.analysis.surface import surface_level
from drgn_ray.analysis.volumes import read_mrc, write_mrc


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three balls that grow."""
    axis = np.arange(16) - 8
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2)
    folder = tmp_path / "kmeans3"
    folder.mkdir()
    for number in range(3):
        write_mrc(folder / f"vol_{number:03d}.mrc", np.exp(-((radius / (2 + number)) ** 2)), 1.5, "a ball")
    return folder


def test_a_gallery_opens_every_volume_in_its_colour(folder: Path) -> None:
    script = folder.parent / "view_kmeans.cxc"
    write_gallery(folder, script)
    text = script.read_text()
    opened = re.findall(r"^open (\S+) id (\d+)$", text, re.MULTILINE)
    assert [(folder.parent / name).exists() for name, _ in opened] == [True] * 3
    shown = re.findall(r"^volume #(\d+) level (\S+) color (#[0-9a-f]{6})", text, re.MULTILINE)
    assert [number for number, _, _ in shown] == [number for _, number in opened]
    assert [colour for _, _, colour in shown] == colours(3)
    for (name, _), (_, level, _) in zip(opened, shown, strict=True):
        assert float(level) == pytest.approx(surface_level(read_mrc(str(folder.parent / name)).data), rel=1e-4)


def test_a_movie_plays_the_folder_at_the_level_of_its_middle(folder: Path) -> None:
    script = folder.parent / "movie_pc1.cxc"
    write_series(folder, script)
    (pattern,) = re.findall(r"^open (\S+) vseries true$", script.read_text(), re.MULTILINE)
    assert len(list(folder.parent.glob(pattern))) == 3
    (level,) = re.findall(r"level (\S+)", script.read_text())
    assert float(level) == pytest.approx(surface_level(read_mrc(str(folder / "vol_001.mrc")).data), rel=1e-4)


def test_there_are_colours_for_any_number_of_clusters() -> None:
    assert len(set(colours(20))) == 20
    assert colours(50)[:20] == colours(20) == colours(50)[20:40]
