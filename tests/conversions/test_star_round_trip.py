"""Whatever table is written as STAR, the same angles, shifts and defocus are read from it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import starfile
from hypothesis import given, settings
from hypothesis import strategies as st
from star_sets import relion_matrix, write_empty_stacks_for

from conversions.inputs import read_particles

BOX_SIZE = 24
WRITTEN_DIGITS = 1e-6  # starfile writes six decimals


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False)


ROW = st.fixed_dictionaries(
    {
        "rlnImageName": st.builds(
            "{:d}@{}".format, st.integers(1, 9), st.sampled_from(["a.mrcs", "Extract/job001/b.mrcs", "c d.mrcs"[2:]])
        ),
        "rlnAngleRot": numbers(-360, 360),
        "rlnAngleTilt": numbers(0, 180),
        "rlnAnglePsi": numbers(-180, 180),
        "rlnDefocusU": numbers(-5e3, 5e4),
        "rlnDefocusV": numbers(-5e3, 5e4),
        "rlnDefocusAngle": numbers(-180, 180),
        "x": numbers(-50, 50),
        "y": numbers(-50, 50),
        "rlnOpticsGroup": st.integers(1, 3),
        "rlnRandomSubset": st.integers(1, 2),
    }
)


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(ROW, min_size=1, max_size=12), relion_31=st.booleans(), apix=numbers(0.5, 20))
def test_what_was_written_is_read(rows: list[dict[str, float]], relion_31: bool, apix: float) -> None:
    origin = ("rlnOriginXAngst", "rlnOriginYAngst") if relion_31 else ("rlnOriginX", "rlnOriginY")
    particles = pd.DataFrame(rows).rename(columns=dict(zip("xy", origin, strict=True)))
    optics = {"rlnVoltage": 200.0, "rlnSphericalAberration": 1.4, "rlnAmplitudeContrast": 0.07}
    if relion_31:
        groups = pd.DataFrame({"rlnOpticsGroup": [3, 1, 2], **optics, "rlnImagePixelSize": apix})
        blocks = {"optics": groups, "particles": particles}
    else:
        blocks = {"": particles.assign(**optics, rlnDetectorPixelSize=apix, rlnMagnification=1e4)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        starfile.write(blocks, folder / "random.star")
        write_empty_stacks_for(list(particles["rlnImageName"]), folder, BOX_SIZE)
        table = read_particles(str(folder / "random.star"))
    columns = table.columns
    angles = (particles[f"rlnAngle{axis}"].to_numpy() for axis in ("Rot", "Tilt", "Psi"))
    np.testing.assert_allclose(columns["rotation"], relion_matrix(*angles), rtol=0, atol=WRITTEN_DIGITS)
    shifts = particles[list(origin)].to_numpy() * (1 if relion_31 else apix)
    np.testing.assert_allclose(columns["translation"], shifts, rtol=1e-5, atol=WRITTEN_DIGITS * 20)
    for ours, relion in (("defocus_u", "DefocusU"), ("defocus_v", "DefocusV"), ("defocus_angle", "DefocusAngle")):
        np.testing.assert_allclose(columns[ours], particles[f"rln{relion}"], rtol=0, atol=WRITTEN_DIGITS)
    np.testing.assert_allclose(columns["apix"], apix, rtol=1e-5)
    assert list(columns["half_set"]) == list(particles["rlnRandomSubset"])
    assert list(columns["optics_group"]) == list(particles["rlnOpticsGroup"])
    assert table.tables["table"]["rlnImageName"].to_pylist() == list(particles["rlnImageName"])
    assert (table.box_sizes == BOX_SIZE).all()
