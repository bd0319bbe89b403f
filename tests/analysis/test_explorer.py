"""The explorer's file holds what it should, within its limits, and escapes what it is given."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest

from drgn_ray.analysis.explorer import MOST_BYTES, MOST_PARTICLES, Colour, by_category, of_particles, write_explorer
from drgn_ray.analysis.latent_space import principal_components
from drgn_ray.analysis.surface import Framed, framed
from drgn_ray.analysis.volumes import write_mrc
from drgn_ray.training.embed import Latents


def latents(count: int, zdim: int = 3) -> Latents:
    z = np.random.default_rng(0).normal(size=(count, zdim)).astype(np.float32)
    return Latents(z, np.zeros_like(z), 7 * np.arange(count), count)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Three volumes of noise in one group, two in another."""
    rng, found = np.random.default_rng(0), {}
    for name, count in (("k-means centres", 3), ("PC1", 2)):
        folder = found[name] = tmp_path / name
        folder.mkdir()
        for number in range(count):
            write_mrc(folder / f"vol_{number:03d}.mrc", rng.normal(size=(16, 16, 16)), 2.0, "noise")
        np.savetxt(folder / "z_values.txt", rng.normal(size=(count, 3)))
    return found


def parts(page: str) -> tuple[dict, dict[str, np.ndarray]]:
    """What a page says of itself, and its arrays."""
    found = re.search(r'<script id="about" type="application/json">(.*?)</script>', page, re.DOTALL)
    data = re.search(r'<script id="data"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert found is not None
    assert data is not None
    about, block = json.loads(found[1]), gzip.decompress(base64.b64decode(data[1]))
    arrays = {
        name: np.frombuffer(block, each["dtype"], each["length"], each["offset"])
        for name, each in about["arrays"].items()
    }
    return about, arrays


def test_every_particle_is_there_with_its_latent_colour_and_row(tmp_path: Path, folders: dict[str, Path]) -> None:
    known, file = latents(500), tmp_path / "explorer.html"
    by = [by_category("half set", np.arange(500) % 2 + 1), Colour("defocus, µm", np.linspace(1, 2, 500))]
    write_explorer(file, Path("runs/a"), known, principal_components(known.z), by, folders, framed([*folders.values()]))
    about, arrays = parts(file.read_text())
    assert (about["drawn"], about["particles"]) == (500, 500)
    assert np.array_equal(arrays["source_row"], known.source_row)
    for axis in range(3):
        low, step = about["ranges"][f"z{axis}"]
        assert np.allclose(low + step * arrays[f"z{axis}"], known.z[:, axis], atol=1e-4)
    half, defocus = about["colours"]
    assert [half["categories"][number] for number in arrays[half["array"]][:2]] == ["1", "2"]
    assert defocus["range"][0] + defocus["range"][1] * arrays[defocus["array"]][-1] == pytest.approx(2, abs=1e-4)
    assert [(each["name"], each["first"], each["count"]) for each in about["groups"]] == [
        ("k-means centres", 0, 3),
        ("PC1", 3, 2),
    ]
    assert arrays["volumes"].size == 5 * about["volumes"]["side"] ** 3


def test_a_million_particles_are_drawn_in_part_and_the_file_stays_small(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    known, file = latents(1_000_000), tmp_path / "explorer.html"
    write_explorer(file, Path("runs/a"), known, principal_components(known.z), [], folders, framed([*folders.values()]))
    about, arrays = parts(file.read_text())
    assert (about["drawn"], about["particles"]) == (MOST_PARTICLES, 1_000_000)
    assert arrays["source_row"].max() > 6_900_000  # from all over the set
    assert file.stat().st_size < MOST_BYTES


def test_a_molecule_that_fills_what_is_left_of_its_box_keeps_its_surface(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    axis = np.arange(32) - 16
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2)
    for folder in folders.values():
        for file in folder.glob("vol_*.mrc"):
            write_mrc(file, 1 / (1 + np.exp(radius - 8)), 2.0, "a ball")
    known, file, shown = latents(20), tmp_path / "explorer.html", framed([*folders.values()])
    write_explorer(file, Path("runs/a"), known, principal_components(known.z), [], folders, shown)
    about, arrays = parts(file.read_text())
    assert 1 < about["volumes"]["level"] < 254
    inside = arrays["volumes"] > about["volumes"]["level"]
    assert inside.mean() == pytest.approx((shown[0].volumes > shown[0].level).mean(), abs=0.01)


def test_as_many_volumes_as_one_likes_leave_room_for_particles(tmp_path: Path, folders: dict[str, Path]) -> None:
    rng, folder = np.random.default_rng(0), tmp_path / "many"
    folder.mkdir()
    noise = rng.normal(size=(150, 48, 48, 48)).astype(np.float32)
    np.savetxt(folder / "z_values.txt", rng.normal(size=(150, 3)))
    known, file = latents(1_000), tmp_path / "explorer.html"
    shown = [Framed(noise, 2.0, 1.0)]
    write_explorer(file, Path("runs/a"), known, principal_components(known.z), [], {"k-means centres": folder}, shown)
    assert parts(file.read_text())[0]["drawn"] == 1_000
    assert file.stat().st_size < MOST_BYTES


def test_many_dimensions_make_fewer_particles_not_a_larger_file(tmp_path: Path, folders: dict[str, Path]) -> None:
    known, file = latents(100_000, zdim=64), tmp_path / "explorer.html"
    for folder in folders.values():
        count = len(np.loadtxt(folder / "z_values.txt"))
        np.savetxt(folder / "z_values.txt", known.z[:count])
    write_explorer(file, Path("runs/a"), known, principal_components(known.z), [], folders, framed([*folders.values()]))
    assert 10_000 < parts(file.read_text())[0]["drawn"] < 100_000
    assert file.stat().st_size < MOST_BYTES


def test_those_with_umap_coordinates_are_drawn_first(tmp_path: Path, folders: dict[str, Path]) -> None:
    known, file = latents(MOST_PARTICLES + 50), tmp_path / "explorer.html"
    umap = np.full((len(known.z), 2), np.nan)
    umap[50:] = known.z[50:, :2]
    write_explorer(
        file, Path("runs/a"), known, principal_components(known.z), [], folders, framed([*folders.values()]), umap
    )
    about, arrays = parts(file.read_text())
    assert np.array_equal(arrays["source_row"], known.source_row[50:])
    assert {"umap1", "umap2"} < set(about["axes"])


def test_names_from_the_user_cannot_become_part_of_the_page(tmp_path: Path, folders: dict[str, Path]) -> None:
    known, file = latents(20), tmp_path / "explorer.html"
    name = "runs/</script><script>alert(1)</script> $(reboot)"
    write_explorer(file, Path(name), known, principal_components(known.z), [], folders, framed([*folders.values()]))
    page = file.read_text()
    assert "alert(1)</script>" not in page
    about = parts(page)[0]
    assert about["run"] == name
    assert about["export"] == f"drgn-ray export '{name}'"  # quoted for a shell


def test_of_many_groups_the_rare_ones_share_a_colour() -> None:
    values = np.repeat(np.arange(50), np.arange(1, 51))
    found = by_category("optics group", values)
    assert found.categories is not None
    assert len(found.categories) == 20
    assert found.categories[-1] == "31 others"
    assert found.categories[found.values[-1]] == "49"
    assert (found.values[:100] == 19).all()


def test_columns_that_tell_particles_apart_are_colours_and_others_are_not() -> None:
    columns = {
        "source_row": np.array([20, 10, 30]),
        "rotation": np.stack([np.eye(3), np.diag([1, -1, -1]), np.eye(3)]),
        "defocus_u": np.array([1e4, 2e4, 3e4]),
        "defocus_v": np.array([1e4, 2e4, 3e4]),
        "dose": np.zeros(3),
        "half_set": np.array([1, 2, 1]),
        "optics_group": np.array([1, 1, 1]),
    }
    found = {each.label: each.values.tolist() for each in of_particles(columns, np.array([10, 20, 30]))}
    assert found == {"defocus, µm": [2, 1, 3], "view: tilt, °": [180, 0, 0], "half set": [1, 0, 0]}
