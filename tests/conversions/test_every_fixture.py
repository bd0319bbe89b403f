"""File by file: everything in the reference data converts, or is refused with a sentence that says what is missing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import pytest

from drgn_ray.particles.store import ParticleStore
from jobs.cli import main


class Case(NamedTuple):
    """A file, the flags it needs, and what comes of it: (N, D) of the store, or a part of the sentence."""

    file: str
    flags: str
    result: tuple[int, int] | str


F = "{data}/fixtures"
STA = "ay19102021_L3_position6_ribo_it09_bin8_1.82A"
NO_POSES = "no column rlnAngleRot (found"
TOY = f"--poses {F}/toy_angles.pkl --no-ctf --apix 1"
CASES = [
    # fixtures: RELION
    Case("fixtures/relion31.star", "-D 64", (5, 64)),
    Case("fixtures/relion31.v2.star", "-D 64", (5, 64)),
    Case("fixtures/relion31.star", f"--ind {F}/ind4.pkl", (4, 256)),
    Case("fixtures/relion31.6opticsgroups.star", "", "139 of its 139 image files are missing, the first is "),
    Case("fixtures/relion5.star", f"--datadir {F}/toy_datadir", "it says 448 px, but the images of "),
    Case("fixtures/relion5.star", f"--datadir {F}/toy_datadir --apix 0.89", (17, 30)),
    Case("fixtures/FinalRefinement-OriginalParticles-PfCRT.star", "", "no column rlnAmplitudeContrast (found"),
    Case("fixtures/FinalRefinement-OriginalParticles-PfCRT.star", "--no-ctf", "1 of its 1 image files are missing"),
    Case("fixtures/empiar_10076_7.star", "", NO_POSES),
    Case("fixtures/sta_testing_bin8.star", "--apix 15.68", (219, 64)),
    Case("fixtures/sta_testing_bin8.star", f"--poses {F}/sta_pose.pkl --ctf {F}/sta_ctf.pkl", (219, 64)),
    Case("fixtures/sta_testing_bin8.star", f"--apix 15.68 --ind {F}/ind_39_sta_testing_bin8.pkl", (195, 64)),
    Case("fixtures/toy_projections.star", "", NO_POSES),
    Case("fixtures/toy_projections.star", TOY, (1000, 30)),
    Case("fixtures/toy_projections.star", f"--poses {F}/toy_rot_trans.pkl --ctf {F}/test_ctf.pkl", (1000, 30)),
    Case("fixtures/toy_projections_13.star", "", NO_POSES),
    Case("fixtures/toy_projections_dir.star", f"--datadir {F}/toy_datadir {TOY}", (1000, 30)),
    # fixtures: cryoSPARC
    Case("fixtures/cryosparc_P12_J24_001_particles.cs", "", "image files are missing, the first is "),
    Case("fixtures/cryosparc_J2_particles_exported.cs", "", "(found uid, blob, ctf, alignments2D)"),
    Case("fixtures/empiar_10076_7.cs", "", "no alignments3D/pose (found uid, blob, ctf)"),
    # fixtures: stacks, lists and pickles
    Case("fixtures/empiar_10076_7.mrc", "", "an image stack has no poses of its own; pass --poses pose.pkl"),
    Case("fixtures/relion31.mrcs", f"--poses {F}/pose.star.pkl --ctf {F}/ctf1.pkl", (5, 256)),
    Case(
        "fixtures/ay19102021_L3_position6_ribo_it09_bin8_1.82A.mrcs", f"--poses {F}/sta_pose.pkl --no-ctf", "220 images"
    ),
    Case("fixtures/hand.mrcs", f"--poses {F}/hand_rot_trans.pkl --ctf {F}/test_ctf.100.pkl", (100, 64)),
    Case("fixtures/hand.mrcs", f"--poses {F}/hand_rot.pkl --no-ctf --apix 1 -D 32", (100, 32)),
    Case("fixtures/hand.mrcs", f"--poses {F}/hand_rot.pkl --no-ctf", "pass --apix with the Å/px"),
    Case("fixtures/hand.5.mrcs", f"--poses {F}/hand_rot.pkl --no-ctf --apix 1", "for 5 images"),
    Case("fixtures/toy_projections.mrcs", f"{TOY} --ind {F}/ind100-rand.pkl", (100, 30)),
    Case("fixtures/toy_projections.mrcs", f"{TOY} --ind {F}/ind5.pkl", (5, 30)),
    Case("fixtures/toy_projections.mrcs", f"--poses {F}/toy_rot_zerotrans.pkl --ctf {F}/test_ctf.pkl", (1000, 30)),
    Case(
        "fixtures/toy_projections.mrcs",
        f"--poses {F}/toy_trans.pkl --no-ctf --apix 1",
        "holds (1000, 2) numbers",
    ),
    Case("fixtures/toy_projections.txt", TOY, (1000, 30)),
    Case("fixtures/toy_projections_2.txt", TOY, "for 2000 images"),
    Case("fixtures/toy_datadir/toy_images_a.mrcs", TOY, "for 100 images"),
    Case("fixtures/hand_11_particles.npy", "", "its name ends in none of .star, .cs, .mrcs, .mrc, .txt"),
    Case("fixtures/ind100.pkl", "", "its name ends in none of"),
    # volumes are no particles
    Case("fixtures/50S-vol.mrc", TOY, "for 128 images"),
    Case("fixtures/spike-vol.mrc", TOY, "for 128 images"),
    Case("fixtures/hand-vol.mrc", TOY, "this is a volume of 64 px, not a stack"),
    Case("fixtures/toymodel_small_nocenter.mrc", TOY, "this is a volume of 30 px"),
    # RELION's own projections
    Case("relion_made/relion_proj_batch.star", "", (24, 64)),
    Case("relion_made/relion_proj_batch_pfac2.star", "", (24, 64)),
    Case("relion_made/rln_proj_64.star", "", "no column rlnDefocusU"),
    Case("relion_made/rln_proj_64.star", "--no-ctf", "no pixel size (neither rlnImagePixelSize nor"),
    Case("relion_made/rln_proj_64.star", "--no-ctf --apix 5", (5, 64)),
    Case("relion_made/rln_proj_64_centered.star", "--no-ctf", (4, 64)),
    Case("relion_made/rln_proj_64_shifted.star", "--no-ctf", (4, 64)),
    Case("relion_made/sample_particles_relion30.star", "", "1 of its 1 image files are missing"),
    Case("relion_made/sample_particles_relion31.star", "", "image files are missing"),
    Case("relion_made/pointmass.mrc", TOY, "this is a volume of 64 px"),
    Case("relion_made/clean70SRibosome_vol_65p.mrc", TOY, "must be square with an even box size"),
    # tilt series
    Case("tilt10499/ribo10499_10.star", "", (10, 128)),
    Case("tilt10499/ribo10499_10.mrcs", f"{TOY}", "for 10 images"),
    Case("tilt10499/M_particles_sub10.star", "--datadir {data}/tilt10499/tilts", "says 11029 images, 1 are there"),
    Case("empiar10076_sim/10076_both_32_sim.star", "--apix 13.1", (1296, 32)),
    Case("empiar10076_sim/10076_both_32_clean.star", "--apix 13.1 --no-ctf", (1296, 32)),
    Case("empiar10076_sim/10076_classD_32_sim.star", "--apix 13.1", (576, 32)),
    Case("empiar10076_sim/10076_classE_32_sim.star", "--apix 13.1", (720, 32)),
    Case("empiar10076_sim/10076_both_32_sim_vols.star", "--apix 13.1", (144, 32)),
    Case("empiar10076_sim/tilt_scheme_classD.txt", TOY, "image files are missing"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{Path(case.file).name} {case.flags}".strip())
def test_it_converts_or_says_what_is_missing(
    case: Case, reference_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "store.zarr"
    flags = case.flags.format(data=reference_data).split()
    code = main(["convert", str(reference_data / case.file), "-o", str(output), "--workers", "0", *flags])
    if isinstance(case.result, str):
        errors = capsys.readouterr().err.splitlines()
        assert (code, len(errors)) == (2, 1)
        assert case.result in errors[0]
        assert not output.exists()
    else:
        assert code == 0
        store = ParticleStore(output)
        assert (len(store), store.info.box_size) == case.result


def test_no_particle_file_is_left_out(reference_data: Path) -> None:
    tried = {case.file for case in CASES}
    beside = {
        # truth, and stacks that a STAR file of the table stands for
        "empiar10076_sim/10076_classD_32.mrc",
        "empiar10076_sim/10076_classE_32.mrc",
        "empiar10076_sim/commands.txt",
        "empiar10076_sim/tilt_scheme_classE.txt",
    }
    used_by_a_star_file = ("empiar10076_sim/data/", "relion_made/", "tilt10499/tilts/", "fixtures/toy_datadir/")
    for folder in ("fixtures", "relion_made", "tilt10499", "empiar10076_sim"):
        for root, _, names in os.walk(reference_data / folder):
            for name in names:
                file = str((Path(root) / name).relative_to(reference_data))
                if not file.endswith((".star", ".cs", ".mrc", ".mrcs", ".txt")) or file in beside:
                    continue
                assert file in tried or (file.endswith(".mrcs") and file.startswith(used_by_a_star_file)), file
