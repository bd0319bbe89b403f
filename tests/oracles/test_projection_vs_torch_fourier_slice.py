"""Our simulated projections are those torch-fourier-slice makes of our simulated volume."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from drgn_ray.physics.simulate import BlobMolecule, density, project

torch_fourier_slice = pytest.importorskip("torch_fourier_slice")


def test_projections_of_a_turned_molecule_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    position = torch.randn(25, 3, generator=generator) * 12
    rotation = torch.tensor(Rotation.random(6, rng=np.random.default_rng(0)).as_matrix(), dtype=torch.float32)
    one = BlobMolecule(position, torch.ones(25), sigma=6.0)
    each = BlobMolecule(position.expand(6, -1, -1), torch.ones(6, 25), sigma=6.0)
    ours = project(each, rotation, box_size=64, apix=3.0)
    # Its matrices turn the view, ours the molecule: r' = R r.
    theirs = torch_fourier_slice.project_3d_to_2d(density(one, 64, 3.0), rotation.mT, pad_factor=2.0)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > 0.999
        assert (a - b).abs().max() < 0.03 * a.max()
