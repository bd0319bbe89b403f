"""Rotation matrices against scipy's rotations about one axis after another."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from drgn_ray.units import relion_from_rotation, rotation_from_relion

POLES = pytest.mark.filterwarnings("ignore:Gimbal lock detected")  # there rot and psi are not unique, the matrix is
degrees = st.floats(-180, 180, allow_nan=False)
tilts = st.floats(0, 180, allow_nan=False)


def matrix(rot: float, tilt: float, psi: float) -> np.ndarray:
    return rotation_from_relion(np.array([rot]), np.array([tilt]), np.array([psi]))[0]


def turned_about_axes(rot: float, tilt: float, psi: float) -> np.ndarray:
    """RELION's frame turns and the molecule stays, so each axis turns it the other way round."""
    about_z, about_y = np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0])
    first, second, third = (
        Rotation.from_rotvec(-angle * axis, degrees=True)
        for angle, axis in ((rot, about_z), (tilt, about_y), (psi, about_z))
    )
    return (third * second * first).as_matrix()


@settings(max_examples=50, deadline=None)
@given(degrees, tilts, degrees)
def test_relions_angles_are_turns_about_z_then_y_then_z(rot: float, tilt: float, psi: float) -> None:
    assert np.abs(matrix(rot, tilt, psi) - turned_about_axes(rot, tilt, psi)).max() < 1e-12


@POLES
@settings(max_examples=50, deadline=None)
@given(degrees, tilts, degrees)
@example(30.0, 0.0, 50.0)
@example(30.0, 180.0, 50.0)
def test_angles_of_a_matrix_give_the_matrix_again_also_at_the_poles(rot: float, tilt: float, psi: float) -> None:
    expected = matrix(rot, tilt, psi)
    again = relion_from_rotation(expected[None])[0]
    assert np.abs(matrix(*again) - expected).max() < 1e-6


def test_psi_turns_the_picture_clockwise_from_x_to_minus_y() -> None:
    landed = matrix(0.0, 0.0, 90.0) @ [1.0, 0.0, 0.0]
    assert landed == pytest.approx([0.0, -1.0, 0.0], abs=1e-12)


def test_a_tilt_of_90_degrees_brings_z_to_minus_x() -> None:
    landed = matrix(0.0, 90.0, 0.0) @ [0.0, 0.0, 1.0]
    assert landed == pytest.approx([-1.0, 0.0, 0.0], abs=1e-12)
