"""Radiation damage against Grant and Grigorieff (2015), and what tilt series multiply their CTF by.

Their critical dose at 300 kV is 0.24499 k^-1.6649 + 2.8141 e/Å² (k in 1/Å), and the optimal dose 2.51284 times that.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from drgn_ray.physics.ctf import dose_filter
from drgn_ray.physics.lattice import half_disc
from drgn_ray.physics.observation import CTF_COLUMNS, Observer

# k in 1/Å and critical dose in e/Å², worked out by hand: 0.1^-1.6649 = 46.2275, 0.25^-1.6649 = 10.0547.
BY_HAND = [(0.1, 14.1394), (0.25, 5.2775), (0.5, 3.5910)]
SIZE, COUNT = 16, 3


def left(k: float, dose: float, voltage: float = 300.0, apix: float = 1.5) -> float:
    freq = torch.tensor([[k * apix, 0.0]])
    given = {"apix": apix, "dose": dose, "voltage": voltage}
    return dose_filter(freq, **{name: torch.tensor([value]) for name, value in given.items()}).item()


@pytest.mark.parametrize(("k", "critical"), BY_HAND)
def test_at_the_critical_dose_the_intensity_has_fallen_to_one_over_e(k: float, critical: float) -> None:
    assert left(k, critical) == pytest.approx(math.exp(-1 / 2), rel=1e-4)


@pytest.mark.parametrize(("k", "critical"), BY_HAND)
@pytest.mark.parametrize(("voltage", "scale"), [(300.0, 1.0), (200.0, 0.8), (100.0, 0.57)])
def test_slower_electrons_damage_more(k: float, critical: float, voltage: float, scale: float) -> None:
    assert left(k, scale * critical, voltage) == pytest.approx(math.exp(-1 / 2), rel=1e-4)


@pytest.mark.parametrize(("k", "critical"), BY_HAND)
def test_nothing_is_left_beyond_the_optimal_dose(k: float, critical: float) -> None:
    assert left(k, 2.512 * critical) == pytest.approx(math.exp(-1.256), rel=1e-3)
    assert left(k, 2.514 * critical) == 0


def test_all_is_left_without_dose() -> None:
    freq = half_disc(SIZE).freq
    ones = torch.ones(2)
    assert torch.equal(dose_filter(freq, apix=ones, dose=0 * ones, voltage=300 * ones), torch.ones(2, len(freq)))


def test_more_dose_and_higher_frequencies_leave_less() -> None:
    freq = torch.stack([torch.linspace(0.01, 0.5, 40), torch.zeros(40)], dim=-1)
    dose = torch.arange(0.0, 30.0, 3.0)
    damped = dose_filter(freq, apix=torch.full_like(dose, 2.0), dose=dose, voltage=torch.full_like(dose, 300.0))
    assert (damped.diff(dim=0) <= 0).all()
    assert (damped.diff(dim=1) <= 0).all()


def test_the_filter_is_round_and_in_units_of_the_specimen() -> None:
    def of(x: float, y: float, apix: float) -> float:
        given = {"apix": apix, "dose": 6.0, "voltage": 300.0}
        return dose_filter(torch.tensor([[x, y]]), **{name: torch.tensor([v]) for name, v in given.items()}).item()

    assert of(0.3, 0.4, 4.0) == pytest.approx(of(-0.5, 0.0, 4.0)) == pytest.approx(of(0.0, 0.25, 2.0))
    assert 0.1 < of(0.3, 0.4, 4.0) < 0.9


def observed_ctf(damping: bool, ctf: bool = True) -> Tensor:
    observer = Observer(box_size=SIZE, data_sign=1, hartley_std=1.0, window=False, ctf=ctf, damping=damping)
    optics = dict.fromkeys(CTF_COLUMNS, 0.0) | {"apix": 2.0, "defocus_u": 1.5e4, "defocus_v": 1.4e4, "voltage": 200.0}
    batch = {name: torch.full((COUNT,), value) for name, value in optics.items()}
    batch |= {"images": torch.zeros(COUNT, SIZE, SIZE), "rotation": torch.eye(3).expand(COUNT, 3, 3)}
    batch |= {"translation": torch.zeros(COUNT, 2), "dose": DOSE, "ctf_scalefactor": SCALE}
    return observer(batch).ctf


DOSE, SCALE = torch.tensor([0.0, 2.0, 8.0]), torch.tensor([1.0, 0.9, 0.5])


@pytest.mark.parametrize("ctf", [True, False])
def test_an_observer_multiplies_the_ctf_by_scale_factor_and_dose_filter_where_it_is_told_to(ctf: bool) -> None:
    freq, each = half_disc(SIZE).freq, torch.ones(COUNT)
    expected = SCALE[:, None] * dose_filter(freq, apix=2 * each, dose=DOSE, voltage=200 * each)
    damped, plain = observed_ctf(True, ctf), observed_ctf(False, ctf)
    assert torch.allclose(damped, plain * expected, atol=1e-6)
    assert not torch.allclose(damped, plain, atol=0.1)
