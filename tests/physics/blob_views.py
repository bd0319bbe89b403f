"""Noiseless pictures of blob molecules, ready to be back-projected, and blobs that obey a point group."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from drgn_ray.physics.backproject import BackProjector
from drgn_ray.physics.fourier import images_to_half_disc
from drgn_ray.physics.lattice import half_disc
from drgn_ray.physics.simulate import BlobMolecule, project
from drgn_ray.physics.symmetry import point_group

SIZE, APIX, SIGMA = 32, 4.0, 6.0


def random_views(count: int, seed: int = 2) -> Tensor:
    return torch.tensor(Rotation.random(count, rng=np.random.default_rng(seed)).as_matrix(), dtype=torch.float32)


def lopsided() -> BlobMolecule:
    """Thirty blobs of unequal mass without any symmetry."""
    position = torch.randn(30, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([13.0, 7.0, 10.0])
    return BlobMolecule(position, torch.linspace(0.5, 1.5, 30), SIGMA)


def symmetric(sym: str) -> BlobMolecule:
    """Four blobs and all their images under a point group."""
    group = torch.from_numpy(point_group(sym)).float()
    unit = torch.randn(4, 3, generator=torch.Generator().manual_seed(3)) * 12 + torch.tensor([14.0, 4.0, 9.0])
    position = torch.einsum("gij,aj->gai", group, unit).reshape(-1, 3)
    return BlobMolecule(position, torch.linspace(0.5, 1.5, 4).repeat(len(group)), SIGMA)


def pictures(molecule: BlobMolecule, rotation: Tensor) -> Tensor:
    count = len(rotation)
    many = BlobMolecule(molecule.position.expand(count, -1, -1), molecule.mass.expand(count, -1), molecule.sigma)
    return project(many, rotation, SIZE, APIX)


def back_projector(
    molecule: BlobMolecule, rotation: Tensor, weight: Tensor | None = None, sym: str = "C1"
) -> BackProjector:
    """Sums of a molecule's pictures without CTF."""
    points = half_disc(SIZE)
    projector = BackProjector(points, symmetry=torch.from_numpy(point_group(sym)).float())
    coefficients = images_to_half_disc(pictures(molecule, rotation), points)
    projector.insert(coefficients, torch.ones_like(coefficients.real), rotation, weight)
    return projector
