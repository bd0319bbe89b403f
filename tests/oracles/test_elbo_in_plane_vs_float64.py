"""Loss and gradients where every point of a slice lies in the plane k_z = 0, the edge of the decoder's half-space."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from test_elbo_vs_float64 import BATCH, network, random_batch, reference_loss


@pytest.mark.parametrize("pe_type", ["gaussian", "geom_ft"])
@pytest.mark.parametrize("face_down", [False, True])
@pytest.mark.parametrize("size", [16, 32])
def test_slices_in_the_plane_are_not_mirrored(size: int, face_down: bool, pe_type: str) -> None:
    model, batch = network(size, pe_type).eval(), random_batch(size)
    turns = Rotation.from_rotvec(np.arange(BATCH)[:, None] * [0.0, 0.0, 37.0], degrees=True).as_matrix()
    turns = turns @ np.diag([1.0, -1.0, -1.0]) if face_down else turns
    batch["rotation"] = torch.tensor(turns, dtype=torch.float32)
    ours = model(batch).loss
    ours.backward()
    expected, leaves = reference_loss(model, batch, eps=None)
    expected.backward()
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert leaves[name].grad is not None, name
        difference = (parameter.grad.double() - leaves[name].grad).norm() / leaves[name].grad.norm()
        assert difference < 1e-5, f"{name}: {difference:.1e}"
