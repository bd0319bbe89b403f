"""The images of one particle tell its latent together."""

from __future__ import annotations

import torch

from drgn_ray.models.em import Evidence, posterior


def test_evidence_of_a_particles_images_adds_up_and_goes_back_to_each_of_them() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(5, 7, 2, generator=generator)
    images = Evidence(matrix.mT @ matrix, torch.randn(5, 2, generator=generator), torch.rand(5, generator=generator))
    particle = torch.tensor([7, 3, 7, 7, 9])
    pooled, index = images.pooled(particle)
    assert index.tolist() == [1, 0, 1, 1, 2]
    assert torch.allclose(pooled.gram[1], images.gram[[0, 2, 3]].sum(dim=0))
    assert torch.allclose(
        pooled.energy, torch.stack([images.energy[1], images.energy[[0, 2, 3]].sum(), images.energy[4]])
    )
    found = posterior(pooled, 0.1).of(index)
    assert torch.equal(found.mean[0], found.mean[3])
    alone = posterior(images, 0.1)
    assert torch.allclose(found.mean[1], alone.mean[1])
    assert found.covariance[0].trace() < alone.covariance[0].trace()


def test_particles_of_one_image_stay_as_they_are() -> None:
    images = Evidence(torch.ones(3, 1, 1), torch.ones(3, 1), torch.ones(3))
    pooled, index = images.pooled(torch.tensor([2, 0, 1]))
    assert pooled is images
    assert index.tolist() == [0, 1, 2]
