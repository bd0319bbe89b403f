"""What ``drgn-ray inspect`` says: known values of real files, each finding once, and nothing of a clean set."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from cryosparc.dataset import CSDAT_FORMAT, Dataset
from star_sets import StarSet, random_set, write_stack

from conversions.csdat import read_cs, write_cs
from conversions.facts import Facts
from conversions.inspection import Hints, Inspection, inspect, picture
from conversions.suspicions import coverage
from drgn_ray.config import ModelConfig, ResourcesConfig, RunConfig, TrainingConfig
from drgn_ray.distributed.embed import embed
from drgn_ray.distributed.train import train
from drgn_ray.errors import UserError
from drgn_ray.particles.store import ParticleStore, _sealed
from drgn_ray.training.report import LogReporter
from drgn_ray.training.run_directory import RunDirectory
from jobs.cli import main

REAL = ("fixtures", "relion_made", "tilt10499", "empiar10076_sim", "adk_sim")
SUFFIXES = (".star", ".cs", ".mrcs", ".mrc", ".pkl")
ANGLES, ORIGINS = ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"], ["rlnOriginXAngst", "rlnOriginYAngst"]
DEFOCUS = ["rlnDefocusU", "rlnDefocusV"]
ODD_VOLUME = "clean70SRibosome_vol_65p.mrc"  # 65 px, which no image stack has


@pytest.fixture
def star_set(star_set: StarSet) -> StarSet:
    """Particles nearer to the middle of their small boxes."""
    star_set.particles[ORIGINS] /= 4
    return star_set


def look(path: Path, **hints: object) -> Inspection:
    return inspect(str(path), Hints(**hints))  # type: ignore[arg-type]


def value(inspection: Inspection, label: str) -> str:
    """Values of all lines of a label."""
    return " | ".join(line.value for section in inspection.sections for line in section.lines if line.label == label)


def found(inspection: Inspection) -> str:
    return "\n".join(map(str, inspection.findings))


def test_every_real_file_fits_a_screen(reference_data: Path) -> None:
    paths = [path for part in REAL for path in (reference_data / part).rglob("*") if path.suffix in SUFFIXES]
    paths = [path for path in paths if path.name != ODD_VOLUME and path.parent.name != "gt"]
    assert len(paths) > 60
    for path in paths:
        screen = str(look(path))
        assert len(screen.splitlines()) <= 30, path
        assert "nan" not in screen.replace(path.name, ""), screen


def test_a_relion_30_table_without_images_or_amplitude_contrast(reference_data: Path) -> None:
    pfcrt = look(reference_data / "fixtures/FinalRefinement-OriginalParticles-PfCRT.star")
    assert value(pfcrt, "kind") == "RELION 3.0 STAR (no version line)"
    assert value(pfcrt, "particles") == "5"
    assert value(pfcrt, "Å/px") == "1.035"
    assert value(pfcrt, "image files") == "1, 1 missing"
    assert value(pfcrt, "defocus") == "14,702, 16,268, 16,979 Å (min, median, max)"
    assert value(pfcrt, "half sets") == "1 in 1, 4 in 2"
    assert "no column rlnAmplitudeContrast" in found(pfcrt)
    assert "1 of 1 image files are missing" in found(pfcrt)


def test_a_header_whose_pixel_size_is_wrong(reference_data: Path) -> None:
    particles = look(reference_data / "fixtures/relion31.star")
    assert value(particles, "kind") == "RELION 3.1 STAR (version 30001)"
    assert value(particles, "box, Å/px") == "256 px of 2.806 Å = 718.3 Å"
    assert "the image files' headers say 1 Å/px, the table 2.806 in 5 of 5 rows" in found(particles)
    assert "headers say" not in found(look(reference_data / "relion_made/relion_proj_batch.star"))


def test_a_relion_5_table(reference_data: Path) -> None:
    particles = look(reference_data / "fixtures/relion5.star")
    assert value(particles, "kind") == "RELION 5 STAR (version 50001)"
    assert "rlnOddZernike" in value(particles, "not modelled")
    assert "the same image is there again in 2 of 17 rows, the first is row 11" in found(particles)


def test_optics_groups_and_samplings(reference_data: Path) -> None:
    particles = look(reference_data / "fixtures/relion31.6opticsgroups.star")
    assert value(particles, "group 4") == "196 px, 1.25 Å/px, 200 kV, Cs 2.6 mm, amplitude contrast 0.1: 7 images"
    assert "there are 2 samplings (196 px of 1.25 Å, 196 px of 1.24 Å); convert brings all to 194 px" in found(
        particles
    )


def test_cryosparc_particles(reference_data: Path) -> None:
    particles = look(reference_data / "fixtures/cryosparc_P12_J24_001_particles.cs")
    assert value(particles, "kind") == "cryoSPARC particles (NumPy format)"
    assert value(particles, "sign") == "the file says that protein is dark"
    assert value(particles, "half sets") == "1,010 in 1, 1,009 in 2"
    assert value(particles, "views").startswith("95% of all directions")
    assert value(particles, "shifts") == "rms 30.5, max 60.3 Å (11.4% of the box)"
    assert len(particles.findings) == 1


def test_cryosparc_5_particles(reference_data: Path, tmp_path: Path) -> None:
    source = reference_data / "fixtures/cryosparc_P12_J24_001_particles.cs"
    Dataset.load(str(source)).save(str(tmp_path / "particles.cs"), format=CSDAT_FORMAT)
    assert value(look(tmp_path / "particles.cs"), "kind") == "cryoSPARC particles (CSDAT)"


def test_cryosparc_particles_without_poses(reference_data: Path) -> None:
    particles = look(reference_data / "fixtures/empiar_10076_7.cs")
    assert "no alignments3D/pose" in found(particles)
    assert value(particles, "views") == ""
    assert value(particles, "grey values").endswith("(7 images sampled)")


def test_a_truncated_stack(reference_data: Path) -> None:
    stack = look(next((reference_data / "tilt10499/tilts").glob("*.mrcs")))
    assert value(stack, "particles") == "11,029"
    assert "says 11,029 images, 1 are there; copy them again" in found(stack)


def test_tilt_series(reference_data: Path) -> None:
    tilts = look(reference_data / "empiar10076_sim/10076_both_32_sim.star", apix=13.1)
    assert value(tilts, "tilt series") == "144 particles, 8 to 10 images each, 1,296 in all; dose 2 to 30 e/Å²"
    assert value(tilts, "phase shift") == "90°"
    assert value(tilts, "box, Å/px") == "32 px of 13.1 Å = 419.2 Å"
    assert "there are no half sets" in found(tilts)


def test_simulated_particles_are_not_suspicious(adk_star: Path) -> None:
    adk = look(adk_star)
    assert value(adk, "image files").startswith("1, MRC mode 12 (float16)")
    assert value(adk, "contrast").startswith("protein is white: ")
    assert found(adk) == ""
    assert str(adk).endswith("suspicious\n  nothing")


def test_cryodrgn_pickles(reference_data: Path) -> None:
    poses = look(reference_data / "fixtures/pose.cs.pkl")
    assert value(poses, "kind") == "cryoDRGN poses (rotations and shifts)"
    assert value(poses, "shifts").endswith("of the box")
    ctf = look(reference_data / "fixtures/ctf2.pkl")
    assert value(ctf, "group 1") == "180 px, 2.95 Å/px, 200 kV, Cs 2 mm, amplitude contrast 0.07: 2,019 images"
    assert value(look(reference_data / "fixtures/ind4.pkl"), "rows").startswith("4, from ")
    assert "no pose.pkl" in found(look(reference_data / "empiar10076_sim/labels_D-0_E-1.pkl"))


def test_a_clean_set_is_not_suspicious(star_set: StarSet) -> None:
    assert found(look(star_set.write())) == ""


def drop_file(star_set: StarSet) -> None:
    star_set.particles.loc[3, "rlnImageName"] = "1@elsewhere.mrcs"


def cut_short(star_set: StarSet) -> None:
    star_set.stack.write_bytes(star_set.stack.read_bytes()[:-4])


def several_samplings(star_set: StarSet) -> None:
    star_set.optics = star_set.optics.loc[[0, 0]].reset_index(drop=True)
    star_set.optics["rlnOpticsGroup"] = [1, 2]
    star_set.optics["rlnImagePixelSize"] = [2.0, 2.02]
    star_set.particles["rlnOpticsGroup"] = 1 + np.arange(20) % 2


def one_pixel_size_off(star_set: StarSet) -> None:
    star_set.optics = star_set.optics.loc[[0, 0, 0]].reset_index(drop=True)
    star_set.optics["rlnOpticsGroup"] = [1, 2, 3]
    star_set.optics["rlnImagePixelSize"] = [2.0, 2.0, 2.2]
    star_set.particles["rlnOpticsGroup"] = 1 + np.arange(20) % 3


def set_optics(column: str, number: float) -> Callable[[StarSet], None]:
    return lambda star_set: star_set.optics.__setitem__(column, number)


def set_rows(columns: list[str], numbers: object) -> Callable[[StarSet], None]:
    return lambda star_set: star_set.particles.__setitem__(columns, numbers)


def scale(columns: list[str], factor: float) -> Callable[[StarSet], None]:
    return lambda star_set: star_set.particles.__setitem__(columns, star_set.particles[columns] * factor)


def repeat_row(columns: list[str]) -> Callable[[StarSet], None]:
    def repeat(star_set: StarSet) -> None:
        star_set.particles.loc[5, columns] = star_set.particles.loc[4, columns]

    return repeat


def pixels(number: float) -> Callable[[StarSet], None]:
    return lambda star_set: star_set.images.__setitem__(2, number)


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        (drop_file, "1 of 2 image files are missing"),
        (several_samplings, "there are 2 samplings (16 px of 2 Å, 16 px of 2.02 Å); convert brings all to "),
        (one_pixel_size_off, "optics group 3 alone has 2.2 Å/px, the other 2 have 2"),
        (set_optics("rlnImageSize", 32), "the table says 32 px, the image files 16 in 20 of 20 rows"),
        (set_optics("rlnImagePixelSize", 0), "apix is 0 Å/px, outside 0.001 to 1000 (row 0); check the unit"),
        (set_optics("rlnVoltage", 300_000), "the voltage is 300000: it looks like V; divide by 1,000"),
        (set_optics("rlnSphericalAberration", 0), "Cs is 0 in 20 of 20 rows"),
        (set_optics("rlnAmplitudeContrast", 0), "the amplitude contrast is 0 in 20"),
        (set_optics("rlnAmplitudeContrast", 0.4), "the amplitude contrast is 0.4 in 20"),
        (set_optics("rlnCtfDataAreCtfPremultiplied", 1), "says that the images were multiplied by their CTF"),
        (set_optics("rlnCtfDataArePhaseFlipped", 1), "says that the images were phase-flipped"),
        (set_optics("rlnOpticsGroup", 7), "optics group 1 is not in data_optics"),
        (scale(DEFOCUS, 1e-4), "it looks like µm; multiply by 10,000 for Å"),
        (scale(DEFOCUS, 1e-10), "it looks like m; multiply by 1e10 for Å"),
        (scale(DEFOCUS, 0), "all defocus values are 0"),
        (set_rows(ANGLES, 0.0), "all 20 poses are the unit rotation"),
        (set_rows(ANGLES, 30.0), "all 20 poses are the same rotation"),
        (repeat_row([*ANGLES, *ORIGINS]), "the pose is another particle's too in 1 of 20 rows, the first is row 5"),
        (set_rows(ORIGINS, 9.0), "shifts exceed a quarter of the box in 20 of 20 rows"),
        (repeat_row(["rlnImageName"]), "the same image is there again in 1 of 20 rows, the first is row 5"),
        (set_rows(["rlnRandomSubset"], 1), "all particles are in half set 1"),
        (set_rows(["rlnRandomSubset"], 0), "there are no half sets"),
        (pixels(1.0), "1 of 20 sampled images have no variance, the first is of row 2"),
        (pixels(np.nan), "1 of 20 sampled images have pixels that are not numbers, the first is of row 2"),
        (lambda s: s.set_value(3, "rlnDefocusU", "nan"), "rlnDefocusU is 'nan', not a number (row 3)"),
        (lambda s: s.set_value(3, "rlnImageName", "21@stack.mrcs"), "image numbers are outside their stack in 1 of 20"),
    ],
)
def test_a_mistake_is_found(mistake: Callable[[StarSet], None], sentence: str, star_set: StarSet) -> None:
    mistake(star_set)
    particles = look(star_set.write())
    assert sentence in found(particles)
    assert value(particles, "particles") == "20", "it must go on after the mistake"


def test_a_table_with_a_stack_cut_short(star_set: StarSet) -> None:
    star = star_set.write()
    cut_short(star_set)
    particles = look(star)
    assert "files cut short: 1; the header of" in found(particles)
    assert value(particles, "grey values").endswith("(19 images sampled)")


def test_images_that_are_all_no_numbers_are_looked_at_and_drawn(star_set: StarSet, tmp_path: Path) -> None:
    star_set.images[:] = np.nan
    star = star_set.write()
    assert "20 of 20 sampled images have pixels that are not numbers" in found(look(star))
    assert main(["inspect", str(star), "--plot", str(tmp_path / "look.png")]) == 0


def test_several_mistakes_are_all_found(star_set: StarSet) -> None:
    for mistake in (scale(DEFOCUS, 1e-4), set_optics("rlnVoltage", 300_000), pixels(np.nan)):
        mistake(star_set)
    assert len(look(star_set.write()).findings) == 3


def test_a_file_that_cannot_be_opened_is_one_sentence_and_exit_code_2(
    tmp_path: Path, star_set: StarSet, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.star").write_text("These are my notes.\n")
    star = star_set.write()
    assert main(["inspect", str(tmp_path / "notes.star"), str(star)]) == 2
    printed = capsys.readouterr()
    assert "there is no line that begins with data_; pass a STAR file." in printed.err
    assert len(printed.err.splitlines()) == 1
    assert printed.out.startswith(f"{star}\n"), "the other file is inspected all the same"
    for name in ("nowhere.star", "notes.xyz", ""):
        with pytest.raises(UserError):
            look(tmp_path / name)


def test_a_stack_and_a_list_of_stacks(star_set: StarSet) -> None:
    star_set.write()
    (star_set.folder / "stacks.txt").write_text("stack.mrcs\ngone.mrcs\n")
    assert found(look(star_set.stack)) == ""
    listed = look(star_set.folder / "stacks.txt", apix=2.0)
    assert value(listed, "box, Å/px") == "16 px of 2 Å = 32 Å"
    assert "1 of 2 image files are missing" in found(listed)
    cube = write_stack(star_set.folder / "volume.mrc", star_set.images[:16])
    assert "it is a cube of 16 px: rather a volume" in found(look(cube))


def test_a_selection_that_names_rows_twice(tmp_path: Path) -> None:
    path = tmp_path / "ind.pkl"
    path.write_bytes(pickle.dumps(np.array([3, 4, 4, -1])))
    assert value(look(path), "rows") == "4, from -1 to 4"
    assert found(look(path)).startswith("it names a row more than once")
    assert "negative" in found(look(path))


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_sign_that_the_images_contradict(sign: int, simulated: Path, store_path: Path, tmp_path: Path) -> None:
    source = ParticleStore(str(store_path))
    white = source.info.data_sign < 0
    table = _as_cryosparc(source, simulated, sign)
    write_cs(str(tmp_path / "particles.cs"), table)
    particles = look(tmp_path / "particles.cs", datadir=str(simulated.parent))
    assert ("protein is said to be" in found(particles)) == (white != (sign > 0))


def _as_cryosparc(store: ParticleStore, simulated: Path, sign: int) -> np.ndarray:
    from conversions.inputs import read_particles
    from drgn_ray.units import cryosparc_from_rotation

    source, columns = read_particles(str(simulated)), store.columns
    count = len(store)
    values = {
        "uid": np.arange(count, dtype=np.uint64),
        "blob/path": np.array([source.stacks[number].path.encode() for number in source.stack_of]),
        "blob/idx": source.index_of.astype(np.uint32),
        "blob/psize_A": source.columns["apix"].astype(np.float32),
        "blob/sign": np.full(count, sign, np.float32),
        "ctf/accel_kv": columns["voltage"],
        "ctf/cs_mm": columns["cs"],
        "ctf/amp_contrast": columns["amplitude_contrast"],
        "ctf/df1_A": columns["defocus_u"],
        "ctf/df2_A": columns["defocus_v"],
        "ctf/df_angle_rad": np.deg2rad(columns["defocus_angle"]),
        "ctf/phase_shift_rad": np.deg2rad(columns["phase_shift"]),
        "alignments3D/pose": cryosparc_from_rotation(columns["rotation"]).astype(np.float32),
        "alignments3D/shift": (columns["translation"] / source.columns["apix"][:, None]).astype(np.float32),
        "alignments3D/split": (np.arange(count) % 2).astype(np.uint32),
    }
    table = np.zeros(count, [(name, column.dtype, column.shape[1:]) for name, column in values.items()])
    for name, column in values.items():
        table[name] = column
    return table


def test_a_uid_that_is_there_twice(reference_data: Path, tmp_path: Path) -> None:
    table = read_cs(str(reference_data / "fixtures/cryosparc_P12_J24_001_particles.cs")).copy()
    table["uid"][1] = table["uid"][0]
    write_cs(str(tmp_path / "twice.cs"), table)
    assert "the same uid is there again in 1 of 2,019 rows, the first is row 1" in found(look(tmp_path / "twice.cs"))


def test_a_store_is_whole(store_path: Path) -> None:
    store = look(store_path)
    assert value(store, "kind") == "particle store"
    assert value(store, "particles") == "300"
    assert value(store, "whole") == "yes, every file of it is there"
    assert value(store, "pixels").startswith("float16, times ")
    assert value(store, "sign").startswith("images are multiplied by -1; protein is white")
    assert value(store, "sources").startswith("2 files, ")
    assert value(store, "grey values").endswith("(300 images sampled)")
    assert "did not finish" not in found(store)


def test_a_store_without_its_mark_says_which_command_finishes_it(store_path: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished.zarr"
    shutil.copytree(store_path, unfinished)
    attributes = json.loads((unfinished / "zarr.json").read_text())
    attributes["attributes"] = _sealed({**attributes["attributes"], "complete": False})
    (unfinished / "zarr.json").write_text(json.dumps(attributes))
    store = look(unfinished)
    assert value(store, "whole") == "no"
    assert found(store) == "its conversion did not finish; finish it with `drgn-ray convert`"


def test_a_store_that_lacks_a_file(store_path: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.zarr"
    shutil.copytree(store_path, damaged)
    shutil.rmtree(damaged / "rotation" / "c")
    assert "its file rotation/c/0/0/0 is missing; convert again" in found(look(damaged))


def test_a_run_that_has_not_begun(store_path: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.begin(RunConfig(particles=str(store_path)))
    looked = look(run.path)
    assert value(looked, "kind") == "run directory"
    assert value(looked, "store").startswith(f"{store_path}: 300 particles, 32 px of ")
    assert value(looked, "epochs") == "0 of 20; 0 images seen"
    assert value(looked, "latents") == value(looked, "loss") == value(looked, "checkpoints") == "none yet"
    assert "0 of 20 epochs are finished; unless it is still running, go on with `drgn-ray train" in found(looked)


def test_a_run_whose_store_is_gone(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.begin(RunConfig(particles=str(tmp_path / "gone.zarr")))
    assert f"{tmp_path}/gone.zarr: there is no particle store here; make one with" in found(look(run.path))


def test_a_trained_run(store_path: Path, tmp_path: Path) -> None:
    config = RunConfig(
        particles=str(store_path),
        model=ModelConfig(zdim=2, enc_dim=8, enc_layers=1, dec_dim=8, dec_layers=1, pe_dim=4),
        training=TrainingConfig(num_epochs=1, precision="fp32"),
        resources=ResourcesConfig(num_workers=0),
    )
    run = RunDirectory(tmp_path / "run")
    run.begin(config)
    train(config, run, partial(LogReporter, run, 1))
    looked = look(run.path)
    assert value(looked, "model") == "zdim 2, encoder 1 x 8, decoder 1 x 8, gaussian encoding"
    assert value(looked, "epochs").startswith("1 of 1; ")
    assert value(looked, "loss").startswith("training ")
    assert value(looked, "checkpoints") == "slice_000001"
    assert found(looked) == (f"{run.latents_file}: the latents are not there yet; type `drgn-ray embed {run.path}`")
    embed(run, ParticleStore(str(store_path)), num_workers=0).save(run.latents_file)
    assert value(look(run.path), "latents") == "300 particles, 2 dimensions"
    assert found(look(run.path)) == ""


def test_a_picture_has_four_panels(star_set: StarSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    star, output = star_set.write(), tmp_path / "particles.png"
    figure = picture(look(star))
    titles = {axes.get_title() for axes in figure.axes} - {""}
    assert titles == {"mean of 20 images", "power spectrum, rotational mean", "viewing directions", "defocus"}
    assert main(["inspect", str(star), "--plot", str(output)]) == 0
    assert capsys.readouterr().out.endswith(f"picture {output}\n")
    assert matplotlib.image.imread(output).shape[1] > 1000


def test_a_picture_without_images_has_four_panels_too(star_set: StarSet, tmp_path: Path) -> None:
    star = star_set.write()
    star_set.stack.unlink()
    assert main(["inspect", str(star), "--plot", str(tmp_path / "particles.png")]) == 0
    titles = [axes.get_title() for axes in picture(look(star)).axes]
    assert [title for title in titles if title] == ["mean image", "power spectrum", "viewing directions", "defocus"]


def test_a_picture_that_cannot_be_made(star_set: StarSet, store_path: Path, tmp_path: Path) -> None:
    star = str(star_set.write())
    assert main(["inspect", star, "--plot", str(tmp_path / "nowhere" / "a.png")]) == 2
    assert main(["inspect", star, star, "--plot", str(tmp_path / "a.png")]) == 2
    assert not (tmp_path / "a.png").exists()


def test_the_sampled_spectrum_is_flat_for_white_noise(tmp_path: Path) -> None:
    facts = look(random_set(tmp_path, count=200).write()).facts
    assert isinstance(facts, Facts)
    assert facts.sample is not None
    np.testing.assert_allclose(facts.sample.mean_power, 1, atol=0.1)
    assert facts.mean_squared_ctf is not None
    assert 0 <= facts.mean_squared_ctf.min() < facts.mean_squared_ctf.max() <= 1


def test_coverage_of_a_sphere_and_of_one_view() -> None:
    directions = np.random.default_rng(0).normal(size=(20_000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    even = coverage(directions, len(directions))
    assert even.seen == 1
    assert even.densest < 1.3
    one = coverage(np.tile([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]], (50, 1)), 100)
    assert one.seen == pytest.approx(1 / 108)
    assert one.densest == pytest.approx(108)


def test_missing_views_are_found(star_set: StarSet) -> None:
    star_set = random_set(star_set.folder, count=200)
    star_set.particles["rlnAngleTilt"] = 3 * np.arange(200) / 200
    assert "of the viewing directions are seen, where 84% is usual" in found(look(star_set.write()))
