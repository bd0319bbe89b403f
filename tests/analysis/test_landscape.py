"""The landscape of volumes whose truth is known: an arm that moves, and a cap that half of the volumes lack."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.linalg import subspace_angles
from sklearn.metrics import adjusted_rand_score, r2_score

from drgn_ray.analysis.figures import landscape_figure, regions_figure
from drgn_ray.analysis.landscape import (
    discrete_states,
    find_landscape,
    molecule_mask,
    overlay,
    sketch,
    volume_components,
)
from drgn_ray.analysis.occupancy import levels, occupancy
from drgn_ray.analysis.prediction import fit_predictor, nearest_state, standardised
from drgn_ray.errors import RunError
from drgn_ray.physics.simulate import BlobMolecule, density

SIZE, APIX, SIGMA = 24, 4.0, 5.0
BODY = torch.tensor([[x, y, 0.0] for x in (-12.0, -4.0, 4.0, 12.0) for y in (-8.0, 0.0, 8.0)])
CAP = torch.tensor([[0.0, 0.0, -24.0], [6.0, 0.0, -24.0], [0.0, 6.0, -24.0]])


class Toy(NamedTuple):
    z: np.ndarray
    has_cap: np.ndarray
    volumes: np.ndarray


def blobs(*parts: torch.Tensor, mass: float = 1.0) -> np.ndarray:
    position = torch.cat(parts)
    return density(BlobMolecule(position, torch.full((len(position),), mass), SIGMA), SIZE, APIX).numpy()


def toy(count: int = 120, seed: int = 0) -> Toy:
    """Volumes that bend with the first latent, and have a cap where the second is above 0."""
    rng = np.random.default_rng(seed)
    z = rng.uniform(-1, 1, (count, 3)).astype(np.float32)
    has_cap = z[:, 1] > 0
    arms = [torch.tensor([[20 * np.sin(x), 0, 12 + 12 * np.cos(x)]], dtype=torch.float32) for x in z[:, 0]]
    volumes = [blobs(BODY, arm, *([CAP] if cap else [])) for arm, cap in zip(arms, has_cap, strict=True)]
    return Toy(z, has_cap, np.stack(volumes).astype(np.float32))


@pytest.fixture(scope="module")
def seen() -> Toy:
    return toy()


def region(*parts: torch.Tensor) -> np.ndarray:
    volume = blobs(*parts)
    return volume > 0.3 * volume.max()


def test_a_sketch_reaches_what_few_particles_have() -> None:
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.normal(0, 1, (990, 2)), rng.normal(20, 1, (10, 2))])
    rows = sketch(z, 50)
    assert len(set(rows)) == len(rows)
    assert (rows >= 990).any()


def test_tilts_of_a_particle_are_decoded_once() -> None:
    z = np.repeat(np.random.default_rng(8).normal(size=(30, 2)), 5, axis=0)
    assert sorted(sketch(z, 100) // 5) == list(range(30))


def test_latents_that_are_all_alike_make_no_sketch() -> None:
    z = np.repeat(np.eye(4), 10, axis=0)
    with pytest.raises(RunError, match="4 of them differ"):
        sketch(z, 30)


def test_the_mask_has_what_only_some_volumes_have(seen: Toy) -> None:
    rare = np.concatenate([seen.volumes[~seen.has_cap], seen.volumes[seen.has_cap][:1]])
    for sign in (1, -1):
        mask = molecule_mask(overlay(sign * rare), APIX)
        assert mask[region(CAP)].all()
        assert mask.mean() < 0.5


def test_components_are_those_that_volumes_are_made_of() -> None:
    rng = np.random.default_rng(1)
    axes = np.linalg.qr(rng.normal(size=(800, 2)))[0].T
    z = rng.uniform(-1, 1, (100, 2))
    voxels = 3 + np.stack([5 * np.sin(2 * z[:, 0]), z[:, 1] ** 3], axis=1) @ axes
    pca = volume_components(voxels.astype(np.float32), 10)
    assert len(pca.axes) == 2, "the others are rounding"
    assert np.rad2deg(subspace_angles(pca.axes.T, axes.T)).max() < 0.1
    assert np.allclose(pca.mean + pca.scores @ pca.axes, voxels, atol=1e-4)


def test_volumes_that_do_not_differ_have_no_components() -> None:
    with pytest.raises(RunError, match="inside the mask they are all the same"):
        volume_components(np.ones((30, 8), np.float32), 2)


def test_a_traversal_goes_between_percentiles_and_is_the_mean_outside_of_the_mask(seen: Toy) -> None:
    mask = region(CAP)
    found = find_landscape(seen.volumes, APIX, mask, most_components=2, num_states=2, linkage="average")
    volumes = np.stack([*found.traversal(0)])
    ends = (volumes[[0, -1]][:, mask] - found.pca.mean) @ found.pca.axes[0]
    assert ends == pytest.approx(np.percentile(found.pca.scores[:, 0], (5, 95)), abs=1e-4)
    assert np.array_equal(volumes[3][~mask], seen.volumes.mean(axis=0)[~mask])
    assert adjusted_rand_score(seen.has_cap, found.states) == 1, "the mask leaves the arm out"


@pytest.mark.parametrize("linkage", ["average", "complete", "single", "ward"])
def test_two_groups_are_two_states_numbered_along_the_first_component(linkage) -> None:
    rng = np.random.default_rng(2)
    truth = rng.integers(2, size=200)
    scores = 10 * truth[:, None] + rng.normal(size=(200, 3))
    states = discrete_states(scores, 2, linkage)
    assert (states == truth).all()
    of_particles = rng.integers(2, size=500)
    assert (
        nearest_state(10.0 * of_particles[:, None] + rng.normal(size=(500, 3)), scores, states) == of_particles
    ).all()


def test_components_of_volumes_are_predicted_for_particles_that_were_not_decoded(seen: Toy) -> None:
    inside = find_landscape(seen.volumes, APIX, None, most_components=3, num_states=2, linkage="average")
    others = toy(100, seed=9)
    z = standardised(np.concatenate([seen.z, others.z]))
    predictor = fit_predictor(z[:120], pd.DataFrame(inside.pca.scores, columns=["a", "b", "c"]))
    predicted = predictor.predict(z[120:])
    true = (others.volumes[:, inside.inside] - inside.pca.mean) @ inside.pca.axes.T
    assert predictor.overall.max() > 0.9
    assert r2_score(true, predicted, multioutput="variance_weighted") > 0.9
    assert predictor.table()["r2"].between(predictor.overall.max() - 1, 1).all()


@pytest.mark.parametrize(
    ("function", "best"), [(lambda z: z @ [[2.0, 1.0], [0.0, 3.0]], "ridge"), (lambda z: z**2, "quadratic")]
)
def test_the_simplest_regression_that_tells_all_is_taken(function, best: str) -> None:
    z = np.random.default_rng(3).normal(size=(80, 2))
    predictor = fit_predictor(z, pd.DataFrame(function(z)))
    assert predictor.name == best
    assert predictor.overall[best] > 0.999


def test_what_latents_do_not_tell_has_no_r2() -> None:
    rng = np.random.default_rng(4)
    assert fit_predictor(rng.normal(size=(80, 2)), pd.DataFrame(rng.normal(size=(80, 1)))).overall.max() < 0.1


def test_a_prediction_in_chunks_is_that_of_all_at_once() -> None:
    rng = np.random.default_rng(5)
    predictor = fit_predictor(rng.normal(size=(40, 2)), pd.DataFrame(rng.normal(size=(40, 2)), columns=["a", "b"]))
    z = rng.normal(size=(103, 2))
    assert np.allclose(predictor.predict(z, chunk=10), predictor.predict(z, chunk=1000), rtol=1e-5)


def test_occupancy_tells_which_volumes_have_the_cap(seen: Toy) -> None:
    overlaid = overlay(seen.volumes)
    between = levels(overlaid, molecule_mask(overlaid, APIX))
    found = occupancy(seen.volumes, {"cap": region(CAP), "body": region(BODY)}, between)
    cap = found.volumes["cap"]
    assert ((cap > 0.5) == seen.has_cap).all()
    assert cap[seen.has_cap].to_numpy() == pytest.approx(1, abs=0.1)
    assert cap[~seen.has_cap].to_numpy() == pytest.approx(0, abs=0.1)
    assert found.volumes["body"].to_numpy() == pytest.approx(1, abs=0.1)
    assert 0.2 < found.full["cap"] < 2


def test_occupancy_does_not_depend_on_contrast_offset_or_sign(seen: Toy) -> None:
    overlaid = overlay(seen.volumes)
    between = levels(overlaid, molecule_mask(overlaid, APIX))
    scale = np.random.default_rng(6).uniform(0.5, 2, (len(seen.volumes), 1, 1, 1)).astype(np.float32)
    plain, other = (
        occupancy(volumes, {"cap": region(CAP)}, between).volumes
        for volumes in (seen.volumes, 0.1 - scale * seen.volumes)
    )
    assert np.allclose(plain, other, atol=1e-3)


def test_a_region_where_nothing_ever_is_has_no_occupancy(seen: Toy) -> None:
    overlaid = overlay(seen.volumes)
    between = levels(overlaid, molecule_mask(overlaid, APIX))
    corner = np.zeros_like(between.core)
    corner[:3, :3, :3] = True
    with pytest.raises(RunError, match="region corner: no volume of the sketch has density there"):
        occupancy(seen.volumes, {"corner": corner}, between)


def test_volumes_that_share_nothing_have_no_occupancy() -> None:
    volumes = np.stack([blobs(torch.tensor([[x, 0.0, 0.0]])) for x in np.linspace(-40, 40, 20)]).astype(np.float32)
    overlaid = overlay(volumes)
    with pytest.raises(RunError, match="no part of the molecule is there in all volumes"):
        levels(overlaid, molecule_mask(overlaid, APIX))


@pytest.mark.parametrize("components", [1, 3])
def test_figures_are_drawn_for_any_number_of_components_and_regions(components: int) -> None:
    rng = np.random.default_rng(7)
    scores, share = rng.normal(size=(300, components)), np.full(components, 0.3)
    figure = landscape_figure(scores, scores[:40], np.arange(40) % 4, share, share)
    assert {"0", "1", "2", "3"} <= {text.get_text() for text in figure.axes[0].texts}
    assert len(figure.axes[1].patches) == components
    regions = regions_figure({str(number): rng.uniform(size=300) for number in range(components + 1)})
    assert sum(axes.get_visible() for axes in regions.axes) == components + 1
