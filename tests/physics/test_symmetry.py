"""Point groups are RELION's, and with one the views of an asymmetric unit are enough."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from blob_views import APIX, SIZE, back_projector, random_views, symmetric
from scipy.spatial.transform import Rotation
from torch import Tensor

from drgn_ray.analysis.agreement import volume_correlation
from drgn_ray.errors import ConfigError
from drgn_ray.physics.backproject import BackProjector, unfiltered_volume
from drgn_ray.physics.lattice import half_disc
from drgn_ray.physics.simulate import density
from drgn_ray.physics.symmetry import point_group

ORDERS = (
    {f"C{n}": n for n in range(1, 8)}
    | {f"D{n}": 2 * n for n in range(1, 8)}
    | {"T": 12, "O": 24, "I": 60, "I1": 60, "I2": 60, "I3": 60, "I4": 60}
)
X, Z = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
# As RELION's symmetry operators have them, in its own decimals.
RELIONS_AXES = [
    ("T", 3, Z),
    ("T", 2, (0, 0.816496, 0.577350)),
    ("O", 3, (0.577350, 0.577350, 0.577350)),
    ("O", 4, Z),
    ("I2", 2, Z),
    ("I2", 5, (0.525731, 0, 0.850651)),
    ("I2", 3, (0, 0.356822, 0.934172)),
    ("I1", 2, X),
    ("I1", 5, (0.850651, 0, -0.525731)),
    ("I1", 3, (0.934172, 0.356822, 0)),
    ("I3", 2, (-0.525731, 0, 0.850651)),
    ("I3", 5, Z),
    ("I3", 3, (-0.491123, 0.356822, 0.794654)),
    ("I4", 2, (0.525731, 0, 0.850651)),
    ("I4", 5, (0.894427, 0, 0.447214)),
    ("I4", 3, (0.491123, 0.356822, 0.794654)),
    ("C6", 6, Z),
    ("D5", 5, Z),
    ("D5", 2, X),
]


def distances(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Largest difference of the elements of every two matrices."""
    return np.abs(some[:, None] - others[None, :]).max(axis=(2, 3))


def are_equal_sets(some: np.ndarray, others: np.ndarray) -> bool:
    near = distances(some, others) < 1e-6
    return bool((near.sum(axis=0) == 1).all() and (near.sum(axis=1) == 1).all())


@pytest.mark.parametrize(("name", "order"), ORDERS.items())
def test_a_group_has_its_order_and_begins_with_the_identity(name: str, order: int) -> None:
    group = point_group(name)
    assert len(group) == order
    assert np.array_equal(group[0], np.eye(3))


@pytest.mark.parametrize("name", ORDERS)
def test_a_group_is_closed_and_holds_each_rotation_once(name: str) -> None:
    group = point_group(name)
    assert np.allclose(group @ group.swapaxes(1, 2), np.eye(3), atol=1e-9)
    assert np.allclose(np.linalg.det(group), 1)
    for turn in group:
        assert are_equal_sets(group @ turn, group)


@pytest.mark.parametrize("name", [*(f"{kind}{n}" for kind in "CD" for n in range(1, 8)), "O"])
def test_groups_with_their_main_axis_on_z_are_scipys(name: str) -> None:
    assert are_equal_sets(point_group(name), Rotation.create_group(name, axis="Z").as_matrix())


@pytest.mark.parametrize("name", ["T", "I", "I1", "I2", "I3", "I4"])
def test_the_others_are_scipys_but_for_their_frame(name: str) -> None:
    """Turned into another frame a rotation keeps its angle."""
    ours = Rotation.from_matrix(point_group(name)).magnitude()
    scipys = Rotation.create_group(name[0]).magnitude()
    assert np.allclose(np.sort(ours), np.sort(scipys), atol=1e-6)


@pytest.mark.parametrize(("name", "fold", "axis"), RELIONS_AXES)
def test_relions_axes_are_in_the_group(name: str, fold: int, axis: tuple[float, float, float]) -> None:
    direction = np.array(axis) / np.linalg.norm(axis)
    turn = Rotation.from_rotvec(2 * np.pi / fold * direction).as_matrix()
    assert distances(turn[None], point_group(name)).min() < 1e-5


def test_i_is_i2_and_each_setting_of_it_another() -> None:
    assert are_equal_sets(point_group("I"), point_group("I2"))
    for one, other in itertools.combinations(("I1", "I2", "I3", "I4"), 2):
        assert not are_equal_sets(point_group(one), point_group(other))


@pytest.mark.parametrize("name", ["C0", "Q4", "", "C999", "D", "C-2", "I5", "C4 ", "C1.5"])
def test_what_is_no_group_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="there is no such point group; pass Cn or Dn"):
        point_group(name)


@pytest.mark.parametrize("name", ["c4", "d2", "i3"])
def test_small_letters_name_groups_too(name: str) -> None:
    assert np.array_equal(point_group(name), point_group(name.upper()))


def views_of_one_unit(count: int) -> Tensor:
    """Views along directions within 45 degrees of one, of which other asymmetric units have their own copies."""
    views = random_views(12 * count)
    direction = torch.tensor([0.8, 0.45, 0.4]) / 1.0018  # of sight, in the frame of the molecule
    return views[views[:, 2] @ direction > 0.5**0.5][:count]


@pytest.mark.parametrize("sym", ["C4", "D2", "O"])
def test_views_of_one_asymmetric_unit_are_enough_with_the_symmetry_and_only_with_it(sym: str) -> None:
    molecule, views = symmetric(sym), views_of_one_unit(1000)
    truth = density(molecule, SIZE, APIX).numpy()
    with_it, without = (
        volume_correlation(unfiltered_volume(back_projector(molecule, views, sym=each).sums).numpy(), truth)
        for each in (sym, "C1")
    )
    assert with_it > 0.99
    assert 1 - without > 5 * (1 - with_it)


def test_volumes_are_symmetric_to_rounding_even_of_noise() -> None:
    """Up to Nyquist, of which a box of even size has one end."""
    points, views = half_disc(SIZE), random_views(60)
    noise = torch.randn(60, points.num_points, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    projector = BackProjector(points, symmetry=torch.from_numpy(point_group("D4")).float())
    projector.insert(noise, torch.ones_like(noise.real), views)
    volume = unfiltered_volume(projector.sums)[1:, 1:, 1:]  # about its middle voxel
    for turned in (volume.rot90(1, (1, 2)), volume.flip(0, 1)):
        assert torch.allclose(turned, volume, atol=1e-5 * float(volume.abs().max()))


def test_the_wrong_symmetry_is_seen() -> None:
    molecule = symmetric("C4")
    truth = density(molecule, SIZE, APIX).numpy()
    wrong = unfiltered_volume(back_projector(molecule, random_views(400), sym="D2").sums).numpy()
    assert volume_correlation(wrong, truth) < 0.9
