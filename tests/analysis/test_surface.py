"""Pictures of surfaces show what is where, as it is seen from outside; movies hold them."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from drgn_ray.analysis.surface import PICTURE, Framed, framed, picture, surface_level, write_movie
from drgn_ray.analysis.volumes import volume_name, write_mrc

SIDE = 32


def ball(x: float, y: float, z: float, radius: float = 4.0) -> np.ndarray:
    """A volume with one ball, whose centre is so many voxels from the origin."""
    axis = np.arange(SIDE) - SIDE / 2
    distance = np.sqrt((axis[:, None, None] - z) ** 2 + (axis[None, :, None] - y) ** 2 + (axis[None, None, :] - x) ** 2)
    return (1 / (1 + np.exp(2 * (distance - radius)))).astype(np.float32)


def centre_of_what_is_drawn(view: np.ndarray) -> tuple[float, float]:
    """Right and up of the middle, in voxels."""
    row, column = np.nonzero((view < 250).any(axis=-1))
    scale = SIDE / PICTURE
    return (column.mean() - PICTURE / 2) * scale, (PICTURE / 2 - row.mean()) * scale


@pytest.mark.parametrize(
    ("place", "in_front", "from_the_right"),
    [
        ((8, 0, 0), (8, 0), (0, 2.7)),  # away from who looks along x from the right; seen from above
        ((0, 8, 0), (0, 2.7), (-8, 0)),
        ((0, 0, 8), (0, 7.5), (0, 7.5)),
    ],
)
def test_a_ball_is_drawn_where_it_is(place: tuple, in_front: tuple, from_the_right: tuple) -> None:
    shown = picture(ball(*place), 0.5)
    assert shown.shape == (PICTURE, 2 * PICTURE, 3)
    assert centre_of_what_is_drawn(shown[:, :PICTURE]) == pytest.approx(in_front, abs=0.4)
    assert centre_of_what_is_drawn(shown[:, PICTURE:]) == pytest.approx(from_the_right, abs=0.4)


def test_what_is_nearer_hides_what_is_behind() -> None:
    near, far = ball(0, -8, 2.7, 5), ball(0, 8, -2.7, 3)  # on one line from the eye
    assert np.array_equal(picture(near + far, 0.5)[:, :PICTURE], picture(near, 0.5)[:, :PICTURE])


def test_nothing_is_drawn_where_no_density_reaches_the_level() -> None:
    assert (picture(ball(0, 0, 0), 2.0) == 255).all()


def test_the_level_parts_a_molecule_from_noise_whatever_share_of_the_box_it_fills() -> None:
    noise = 0.1 * np.random.default_rng(0).normal(size=(SIDE,) * 3)
    for radius in (4, 8):
        molecule = ball(0, 0, 0, radius)
        inside = molecule + noise > surface_level(molecule + noise)
        assert (inside & (molecule > 0.5)).sum() > 0.6 * (inside | (molecule > 0.5)).sum()


def test_the_level_of_noise_alone_leaves_next_to_all_of_the_box_outside() -> None:
    noise = np.random.default_rng(0).normal(size=(SIDE,) * 3)
    assert (noise > surface_level(noise)).mean() < 0.003


def test_volumes_are_cut_to_what_holds_density(tmp_path: Path) -> None:
    for number, x in enumerate((-2.0, 5.0)):
        write_mrc(tmp_path / volume_name(number), ball(x, 0, 0, 3), 2.0, "a ball")
    (found,) = framed([tmp_path])
    assert found.volumes.shape[1] < SIDE
    assert found.apix == 2.0
    middle = found.volumes.shape[1] // 2
    assert found.volumes[1, middle, middle, middle + 5] == found.volumes[1].max()


def test_a_movie_goes_forth_and_back(tmp_path: Path) -> None:
    volumes = Framed(np.stack([ball(x, 0, 0) for x in (-8, 0, 8)]), 1.0, 0.5)
    write_movie(volumes, tmp_path / "way.mp4")
    with av.open(str(tmp_path / "way.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    right = [centre_of_what_is_drawn(frame[:, :PICTURE])[0] for frame in frames]
    assert right == pytest.approx([-8, 0, 8, 0], abs=0.5)
