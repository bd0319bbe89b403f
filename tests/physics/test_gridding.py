"""Slices go to the lattice as the kernels say: the same in both programs, shared out in full, and Hermitian."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from drgn_ray.physics.gridding import (
    Kernel,
    complete,
    empty_moment_sums,
    empty_sums,
    insert,
    insert_moments,
    insert_moments_with_torch,
    insert_with_torch,
    interpolate,
    interpolate_with_torch,
    to_hartley_lattice,
)
from drgn_ray.physics.lattice import half_disc

SIZE, COUNT = 16, 5
POINTS = half_disc(SIZE)
KERNELS: tuple[Kernel, ...] = ("trilinear", "cryodrgn")


@pytest.fixture(scope="module")
def values() -> Tensor:
    return torch.randn(COUNT, POINTS.num_points, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def weights() -> Tensor:
    return torch.rand(COUNT, POINTS.num_points, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def rotation() -> Tensor:
    return torch.tensor(Rotation.random(COUNT, rng=np.random.default_rng(2)).as_matrix(), dtype=torch.float32)


def inserted(values: Tensor, weights: Tensor, rotation: Tensor, kernel: Kernel = "trilinear") -> Tensor:
    sums = empty_sums(SIZE)
    insert(sums, values, weights, POINTS.k, rotation, kernel)
    return sums


def whole_space(sums: Tensor) -> Tensor:
    """What the half-space says of all of it: every sum, and those with k_x > 0 once more for -k."""
    whole = complete(sums)
    return whole[:, :, 0].sum(dim=(0, 1)) + 2 * whole[:, :, 1:].sum(dim=(0, 1, 2))


def at(sums: Tensor, x: int, y: int, z: int) -> Tensor:
    origin = len(sums) // 2
    return sums[z + origin, y + origin, x]


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_compiled_loop_adds_up_what_torch_adds_up(
    kernel: Kernel, values: Tensor, weights: Tensor, rotation: Tensor
) -> None:
    by_torch = empty_sums(SIZE)
    insert_with_torch(by_torch, values, weights, POINTS.k, rotation, kernel)
    compiled = inserted(values, weights, rotation, kernel)
    assert compiled.abs().max() > 1
    assert torch.allclose(compiled, by_torch, atol=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_kernels_differ(kernel: Kernel, values: Tensor, weights: Tensor, rotation: Tensor) -> None:
    other = KERNELS[1 - KERNELS.index(kernel)]
    mine, others = (inserted(values, weights, rotation, name) for name in (kernel, other))
    assert not torch.allclose(mine, others, atol=0.1)


def test_trilinear_shares_of_a_point_add_up_to_its_weight(values: Tensor, weights: Tensor, rotation: Tensor) -> None:
    """Each point counts twice in the whole of space, at k and at -k."""
    total = whole_space(inserted(values, weights, rotation).double())
    assert total[2].item() == pytest.approx(2 * weights.double().sum().item(), rel=1e-5)


def test_cryodrgns_shares_add_up_to_the_volume_of_its_cone(values: Tensor, weights: Tensor, rotation: Tensor) -> None:
    """The sum over the lattice of max(0, 1 - distance) is on average its integral, pi/3."""
    total = whole_space(inserted(values, weights, rotation, "cryodrgn").double())
    assert total[2].item() == pytest.approx(2 * np.pi / 3 * weights.double().sum().item(), rel=0.01)


@pytest.mark.parametrize(("kernel", "times"), [("trilinear", 1), ("cryodrgn", 8)])
def test_points_that_fall_on_the_lattice_stay_whole(
    kernel: Kernel, times: int, values: Tensor, weights: Tensor
) -> None:
    """A quarter turn about x puts the slice into the plane of x and z; cryoDRGN's eight neighbours are then one."""
    quarter = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
    sums = inserted(values[:1], weights[:1], quarter[None], kernel)
    for point, (kx, ky) in enumerate(POINTS.k.tolist()):
        value, weight = values[0, point], weights[0, point]
        sign = -1 if kx < 0 else 1  # held as the conjugate at -k
        expected = torch.stack([value.real, sign * value.imag, weight])
        assert torch.allclose(at(sums, sign * kx, 0, sign * ky), times * expected)
    assert torch.isclose(sums[..., 2].sum(), times * weights[0].sum())
    assert not at(sums, 3, 1, 2).any()


@pytest.mark.parametrize("kernel", KERNELS)
def test_both_programs_agree_on_points_that_fall_on_the_lattice(
    kernel: Kernel, values: Tensor, weights: Tensor
) -> None:
    """Where a rotation is made of thirds, rounding decides whether some coordinates are whole numbers."""
    thirds = torch.tensor([[1.0, 2.0, 2.0], [2.0, 1.0, -2.0], [-2.0, 2.0, -1.0]]) / 3
    sums = empty_sums(SIZE)
    insert_with_torch(sums, values[:1], weights[:1], POINTS.k, thirds[None], kernel)
    compiled = inserted(values[:1], weights[:1], thirds[None], kernel)
    # Completed, since a point with k_x = 0 may as well be added as its mirror image.
    assert torch.allclose(complete(compiled), complete(sums), atol=1e-4)


def test_a_slice_and_its_conjugate_turned_by_half_a_turn_are_the_same(
    values: Tensor, weights: Tensor, rotation: Tensor
) -> None:
    """F(-k) = conj F(k), whichever of the two is inserted."""
    half_turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
    here = complete(inserted(values, weights, rotation))
    there = complete(inserted(values.conj().resolve_conj(), weights, half_turn @ rotation))
    assert torch.allclose(here, there, atol=1e-4)


def test_the_completed_plane_is_hermitian(values: Tensor, weights: Tensor, rotation: Tensor) -> None:
    plane = complete(inserted(values, weights, rotation))[:, :, 0]
    mirrored = plane.flip(0, 1)
    assert torch.allclose(plane, mirrored * torch.tensor([1.0, -1.0, 1.0]), atol=1e-5)


def test_the_lattice_holds_real_minus_imaginary_part_at_k_and_their_sum_at_minus_k(
    values: Tensor, weights: Tensor, rotation: Tensor
) -> None:
    sums = complete(inserted(values, weights, rotation))
    lattice = to_hartley_lattice(sums[..., 0], sums[..., 1])
    centre = SIZE // 2
    assert lattice.shape == (SIZE + 1,) * 3
    for x, y, z in ((0, 2, -1), (1, -2, 3), (4, 0, 0), (2, 3, -4)):
        real, imag, _ = at(sums, x, y, z)
        assert torch.isclose(lattice[centre + z, centre + y, centre + x], real - imag)
        assert torch.isclose(lattice[centre - z, centre - y, centre - x], real + imag)


@pytest.fixture(scope="module")
def volumes() -> Tensor:
    """Three volumes on the lattice, Hermitian in the plane k_x = 0 as those of real volumes are."""
    numbers = torch.randn(3, *empty_sums(SIZE).shape, generator=torch.Generator().manual_seed(3))
    lattices = [torch.complex(*complete(each)[..., :2].unbind(-1)) for each in numbers]
    return torch.stack(lattices, dim=-1)


def test_the_compiled_slices_are_those_of_torch(volumes: Tensor, rotation: Tensor) -> None:
    compiled = interpolate(volumes, POINTS.k, rotation)
    assert compiled.abs().max() > 1
    assert torch.allclose(compiled, interpolate_with_torch(volumes, POINTS.k, rotation), atol=1e-5)


def test_a_slice_of_an_unturned_volume_is_its_plane(volumes: Tensor) -> None:
    slices = interpolate(volumes, POINTS.k, torch.eye(3)[None])[0]
    for point, (kx, ky) in enumerate(POINTS.k.tolist()):
        expected = at(volumes, kx, ky, 0) if kx >= 0 else at(volumes, -kx, -ky, 0).conj()
        assert torch.allclose(slices[point], expected)


def test_inserting_is_the_adjoint_of_interpolating(volumes: Tensor, values: Tensor, rotation: Tensor) -> None:
    """<slice of V, y> = <V, y inserted>, which the M-step of EM and the gradient of a voxel decoder rest on."""
    volume = volumes[..., :1].contiguous()
    there = interpolate(volume, POINTS.k, rotation)[..., 0]
    inserted_values = inserted(values, torch.ones(values.shape), rotation).double()
    on_the_lattice = (
        inserted_values[..., 0] * volume[..., 0].real + inserted_values[..., 1] * volume[..., 0].imag
    ).sum()
    in_the_slices = (there.conj() * values).real.double().sum()
    assert on_the_lattice.item() == pytest.approx(in_the_slices.item(), rel=1e-4)


def test_moments_are_the_sums_of_every_volume_with_its_coefficients(
    values: Tensor, weights: Tensor, rotation: Tensor
) -> None:
    """Each channel alone is what `insert` gives for values and weights multiplied by the coefficients."""
    first = torch.randn(COUNT, 2, generator=torch.Generator().manual_seed(4))
    second = torch.randn(COUNT, 3, generator=torch.Generator().manual_seed(5))
    moments, by_torch = empty_moment_sums(SIZE, 2), empty_moment_sums(SIZE, 2)
    insert_moments(moments, values, weights, first, second, POINTS.k, rotation)
    insert_moments_with_torch(by_torch, values, weights, first, second, POINTS.k, rotation)
    assert torch.allclose(moments, by_torch, atol=1e-4)
    for volume in range(2):
        alone = inserted(values * first[:, volume, None], weights, rotation)
        assert torch.allclose(moments[..., volume], alone[..., 0], atol=1e-4)
        assert torch.allclose(moments[..., 2 + volume], alone[..., 1], atol=1e-4)
    for pair in range(3):
        alone = inserted(values, weights * second[:, pair, None], rotation)
        assert torch.allclose(moments[..., 4 + pair], alone[..., 2], atol=1e-4)


@pytest.mark.parametrize("inserting", [insert_moments, insert_moments_with_torch])
def test_slabs_of_moments_are_planes_of_the_whole(
    inserting: Callable[..., None], values: Tensor, weights: Tensor, rotation: Tensor
) -> None:
    first = torch.randn(COUNT, 2, generator=torch.Generator().manual_seed(4))
    second = torch.randn(COUNT, 3, generator=torch.Generator().manual_seed(5))
    whole = empty_moment_sums(SIZE, 2)
    inserting(whole, values, weights, first, second, POINTS.k, rotation)
    for start, stop in ((0, 5), (5, 6), (6, len(whole))):
        slab = empty_moment_sums(SIZE, 2, num_planes=stop - start)
        inserting(slab, values, weights, first, second, POINTS.k, rotation, start)
        assert torch.allclose(slab, whole[start:stop], atol=1e-5)


def test_slices_are_as_exact_under_autocast(volumes: Tensor, rotation: Tensor) -> None:
    """A rotation in bfloat16 would put points between other neighbours."""
    exact = interpolate_with_torch(volumes, POINTS.k, rotation)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(interpolate_with_torch(volumes, POINTS.k, rotation), exact)
