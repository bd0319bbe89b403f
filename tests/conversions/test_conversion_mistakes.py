"""What a user can do wrong with ``drgn-ray convert``: exit code 2 and one sentence that says what to do."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile
from star_sets import Refused, StarSet, random_set, write_empty_stacks_for

from drgn_ray.errors import StoreError
from drgn_ray.particles import store as store_module
from drgn_ray.particles.store import ParticleStore
from jobs.cli import main


def test_a_table_without_defocus(star_set: StarSet, refused: Refused) -> None:
    star_set.particles = star_set.particles.drop(columns="rlnDefocusU")
    star = star_set.write()
    assert refused(star) == (
        f"{star}: no column rlnDefocusU (found 10 columns: rlnImageName, rlnAngleRot, rlnAngleTilt, rlnAnglePsi, "
        "rlnOriginXAngst, rlnOriginYAngst and 4 more); use the STAR file of a CtfRefine, Refine3D or Class3D job, "
        "or pass --no-ctf if the images carry no CTF."
    )


def test_a_table_without_angles(star_set: StarSet, refused: Refused) -> None:
    star_set.particles = star_set.particles.drop(columns="rlnAngleTilt")
    sentence = refused(star_set.write())
    assert "no column rlnAngleTilt" in sentence
    assert sentence.endswith("; use the STAR file of a Refine3D or Class3D job, or pass --poses pose.pkl.")


def test_a_table_without_image_names(star_set: StarSet, refused: Refused) -> None:
    star_set.particles = star_set.particles.drop(columns="rlnImageName")
    star = star_set.write()
    assert refused(star) == (
        f"{star}: no block with particles, that is with a column rlnImageName (found data_optics, data_particles); "
        "pass a particle STAR file, such as run_data.star."
    )


def test_a_real_table_without_amplitude_contrast(reference_data: Path, tmp_path: Path, refused: Refused) -> None:
    star = reference_data / "fixtures/FinalRefinement-OriginalParticles-PfCRT.star"
    write_empty_stacks_for(list(starfile.read(star)["rlnImageName"]), tmp_path, 300)
    assert "no column rlnAmplitudeContrast (found 22 columns: " in refused(star, "--datadir", str(tmp_path))


def test_a_real_table_whose_images_are_elsewhere(reference_data: Path, refused: Refused) -> None:
    star = reference_data / "fixtures/relion31.6opticsgroups.star"
    assert refused(star) == (
        f"{star}: 139 of its 139 image files are missing, the first is "
        f"{star.parent}/Polish/job520/Micrographs/0003_shiny.mrcs; "
        "pass --datadir FOLDER, the folder the paths in the file start from."
    )


def test_a_table_without_pixel_size(star_set: StarSet, refused: Refused) -> None:
    star_set.optics = star_set.optics.drop(columns="rlnImagePixelSize")
    assert refused(star_set.write()).endswith("; pass --apix with the Å/px of the images.")


def test_a_file_that_is_no_table(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "notes.star").write_text("These are my notes.\n")
    assert "there is no line that begins with data_; pass a STAR file." in refused(tmp_path / "notes.star")


def test_a_table_cut_short(star_set: StarSet, refused: Refused) -> None:
    star = star_set.write()
    lines = star.read_text().splitlines()
    last = max(number for number, line in enumerate(lines) if "@" in line)
    star.write_text("\n".join([*lines[:last], lines[last][:30]]))
    assert refused(star).startswith(f"{star}, row 19: ")


def test_a_missing_stack(star_set: StarSet, refused: Refused) -> None:
    star = star_set.write()
    star_set.stack.unlink()
    assert refused(star) == (
        f"{star}: 1 of its 1 image files are missing, the first is {star_set.stack}; "
        "pass --datadir FOLDER, the folder the paths in the file start from."
    )


def test_a_datadir_without_the_stack(star_set: StarSet, tmp_path: Path, refused: Refused) -> None:
    sentence = refused(star_set.write(), "--datadir", str(tmp_path))
    assert f"the first is {tmp_path}/stack.mrcs; pass --datadir FOLDER" in sentence


@pytest.mark.parametrize("number", ["21", "0"])
def test_an_image_number_outside_the_stack(number: str, star_set: StarSet, refused: Refused) -> None:
    star_set.particles.loc[7, "rlnImageName"] = f"{number}@stack.mrcs"
    star = star_set.write()
    assert refused(star) == (
        f"{star}, row 7: image number {number} is outside {star_set.stack}, which holds 20 images; "
        "use the stack this table was written for."
    )


def test_an_image_name_without_number(star_set: StarSet, refused: Refused) -> None:
    star_set.particles.loc[4, "rlnImageName"] = "stack.mrcs"
    star = star_set.write()
    assert refused(star) == (f"{star}, row 4: rlnImageName is 'stack.mrcs', not number@stack.mrcs; mend that row.")


@pytest.mark.parametrize("column", ["rlnDefocusU", "rlnAngleRot", "rlnOriginXAngst", "rlnRandomSubset"])
def test_a_word_where_a_number_should_be(column: str, star_set: StarSet, refused: Refused) -> None:
    star_set.set_value(5, column, "unknown")
    star = star_set.write()
    assert refused(star) == f"{star}, row 5: {column} is 'unknown', not a number; remove or mend that row."


@pytest.mark.parametrize("text", ["nan", "inf"])
def test_a_number_that_is_none(text: str, star_set: StarSet, refused: Refused) -> None:
    star_set.set_value(5, "rlnDefocusV", text)
    star = star_set.write()
    sentence = refused(star)
    assert sentence.startswith(f"{star}, row 5: ")
    assert sentence.endswith(f"{text}, not a number; remove or mend that row.".replace("nan,", "'nan',"))


@pytest.mark.parametrize(
    ("column", "value"), [("rlnVoltage", 300_000), ("rlnAmplitudeContrast", 7), ("rlnImagePixelSize", 0)]
)
def test_a_value_in_another_unit(column: str, value: float, star_set: StarSet, refused: Refused) -> None:
    star_set.optics[column] = value
    sentence = refused(star_set.write())
    assert f" is {value:g} " in sentence
    assert sentence.endswith("; check the unit of that column.")


def test_an_optics_group_that_is_nowhere(star_set: StarSet, refused: Refused) -> None:
    star_set.particles.loc[3, "rlnOpticsGroup"] = 2
    star = star_set.write()
    assert refused(star) == f"{star}, row 3: optics group 2 is not in data_optics; add it there."


def test_an_optics_group_that_is_there_twice(star_set: StarSet, refused: Refused) -> None:
    star_set.optics = pd.concat([star_set.optics, star_set.optics], ignore_index=True)
    star = star_set.write()
    assert refused(star).startswith(f"{star}")


def test_optics_without_their_group(star_set: StarSet, refused: Refused) -> None:
    star_set.optics = star_set.optics.drop(columns="rlnOpticsGroup")
    star = star_set.write()
    assert "rlnOpticsGroup" in refused(star)


def test_an_optics_group_that_is_a_word(star_set: StarSet, refused: Refused) -> None:
    star_set.set_value(3, "rlnOpticsGroup", "one")
    star = star_set.write()
    assert refused(star).startswith(f"{star}, row 3: ")


def test_a_datadir_where_one_file_would_stand_for_two(star_set: StarSet, tmp_path: Path, refused: Refused) -> None:
    star_set.particles["rlnImageName"] = [f"{row % 10 + 1}@{'ab'[row // 10]}/stack.mrcs" for row in range(20)]
    star = star_set.write()
    sentence = refused(star, "--datadir", str(star_set.folder))
    assert "stack.mrcs would be taken for both a/stack.mrcs and b/stack.mrcs; pass as --datadir" in sentence


def test_a_mean_that_float16_would_round_the_images_away_under(star_set: StarSet, refused: Refused) -> None:
    star_set.images += 30_000
    assert refused(star_set.write()).endswith("; pass --dtype float32, or subtract the mean.")


def test_a_half_set_that_is_none(star_set: StarSet, refused: Refused) -> None:
    star_set.particles["rlnRandomSubset"] = 3
    assert "half_set is 3 , outside 0 to 2" in refused(star_set.write())


def test_a_stack_without_poses(star_set: StarSet, refused: Refused) -> None:
    star_set.write()
    assert refused(star_set.stack) == (
        f"{star_set.stack}: an image stack has no poses of its own; pass --poses pose.pkl."
    )


def test_poses_that_are_not_there(star_set: StarSet, refused: Refused) -> None:
    assert refused(star_set.write(), "--poses", "pose.pkl") == "pose.pkl: there is no such pickle; check the path."


def test_a_real_stack_that_is_cut_short(reference_data: Path, refused: Refused) -> None:
    """EMPIAR-10499 as shipped with drgnai: the header promises 11,029 images, and one is there."""
    tilts = reference_data / "tilt10499/tilts"
    assert refused(reference_data / "tilt10499/M_particles_sub10.star", "--datadir", str(tilts)) == (
        f"{tilts}/00256_Ribosomes_1.70A.mrcs: the file is cut short: its header says 11029 images, 1 are there; "
        "copy it again."
    )


def test_a_stack_cut_in_the_middle_of_an_image(star_set: StarSet, refused: Refused) -> None:
    star = star_set.write()
    star_set.stack.write_bytes(star_set.stack.read_bytes()[:-1])
    assert "its header says 20 images, 19 are there; copy it again." in refused(star)


@pytest.mark.parametrize("content", [b"", b"MZ", bytes(5000)], ids=["empty", "two bytes", "zeros"])
def test_a_stack_that_is_none(content: bytes, star_set: StarSet, refused: Refused) -> None:
    star = star_set.write()
    star_set.stack.write_bytes(content)
    assert refused(star).startswith(f"{star_set.stack}: ")


def test_images_of_an_odd_box(star_set: StarSet, refused: Refused) -> None:
    star_set.images = np.ones((20, 17, 17), np.float32)
    assert "20 images of 17 x 17 px; images must be square with an even box size." in refused(star_set.write())


def test_images_of_complex_numbers(star_set: StarSet, refused: Refused) -> None:
    star = star_set.write()
    with mrcfile.new(star_set.stack, overwrite=True) as file:
        file.set_data(np.ones((20, 16, 16), np.complex64))
        file.set_image_stack()
    assert refused(star).endswith("MRC mode 4 is not a real image; convert it to mode 2.")


@pytest.mark.parametrize("size", ["15", "18", "0", "-4"])
def test_a_box_size_that_cannot_be(size: str, star_set: StarSet, refused: Refused) -> None:
    star = star_set.write()
    sentence = f"-D {size}: the images of {star} hold 16 px; pass an even number up to 16."
    assert refused(star, "-D", size) == sentence


def test_contradicting_flags(star_set: StarSet, refused: Refused) -> None:
    assert refused(star_set.write(), "--invert", "--no-invert") == (
        "--invert --no-invert: they contradict each other; pass one, or none to let the data decide."
    )


@pytest.fixture
def tiny_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 images of 8 px a shard."""
    monkeypatch.setattr(store_module, "SHARD_BYTES", 64 * 8 * 8 * 2)


def test_a_pixel_that_is_no_number(star_set: StarSet, refused: Refused) -> None:
    star_set.images[9, 3, 5] = np.nan
    star = star_set.write()
    assert refused(star) == (
        f"{star}, row 9: image 10 of {star_set.stack} has pixels that are not numbers; remove that particle."
    )


def test_a_pixel_that_is_no_number_among_chosen_rows(star_set: StarSet, tmp_path: Path, refused: Refused) -> None:
    star_set.images[9, 3, 5] = np.nan
    star = star_set.write()
    (tmp_path / "ind.txt").write_text("3\n9\n")
    assert refused(star, "--ind", str(tmp_path / "ind.txt")).startswith(f"{star}, row 9: image 10 of ")


@pytest.fixture
def bad_pixel_in_a_late_shard(tmp_path: Path, tiny_shards: None) -> StarSet:
    """2,500 images, of which every second is measured beforehand: image 2,001 is not."""
    large = random_set(tmp_path / "large", count=2500, box_size=8)
    large.images[2001, 0, 0] = np.inf
    return large


def test_a_bad_pixel_met_late_leaves_nothing_that_looks_whole(
    bad_pixel_in_a_late_shard: StarSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    star, output = bad_pixel_in_a_late_shard.write(), tmp_path / "late.zarr"
    assert main(["convert", str(star), "-o", str(output), "--workers", "0"]) == 2
    assert f"image 2002 of {bad_pixel_in_a_late_shard.stack} has pixels that are not" in capsys.readouterr().err
    with pytest.raises(StoreError, match="its conversion did not finish; finish it with `drgn-ray convert"):
        ParticleStore(output)


def test_a_bad_pixel_met_late_is_named_by_its_row(
    bad_pixel_in_a_late_shard: StarSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    star = bad_pixel_in_a_late_shard.write()
    assert main(["convert", str(star), "-o", str(tmp_path / "late.zarr"), "--workers", "0"]) == 2
    assert f"drgn-ray: {star}, row 2001: " in capsys.readouterr().err


def test_pixels_beyond_float16_ask_for_float32(
    tiny_shards: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = random_set(tmp_path / "large", count=2500, box_size=8)
    large.images[2001, 0, 0] = 1e6
    star, output = str(large.write()), tmp_path / "hot.zarr"
    assert main(["convert", star, "-o", str(output), "--workers", "0"]) == 2
    assert capsys.readouterr().err.strip().endswith("; pass --dtype float32.")
    with pytest.raises(StoreError, match="did not finish"):
        ParticleStore(output)
    assert main(["convert", star, "-o", str(output), "--workers", "0", "--dtype", "float32", "--overwrite"]) == 0
    store = ParticleStore(output)
    assert store.read_images(slice(2001, 2002))[0, 0, 0] * store.info.scale == 1e6


def test_no_warning_of_numpy_stands_beside_the_sentence(
    star_set: StarSet, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    large = random_set(tmp_path / "large", count=2500, box_size=8)
    large.images[2001, 0, 0] = 1e6
    (tmp_path / "empty.txt").write_text("")
    assert main(["convert", str(large.write()), "-o", str(tmp_path / "a.zarr"), "--workers", "0"]) == 2
    words = ["--ind", str(tmp_path / "empty.txt"), "-o", str(tmp_path / "b.zarr")]
    assert main(["convert", str(star_set.write()), *words]) == 2
    assert [str(warning.message) for warning in recwarn if warning.category is RuntimeWarning] == []


class TestOutput:
    """Where the store is to go."""

    def test_a_store_that_is_there_is_not_touched(
        self, star_set: StarSet, store_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = ParticleStore(store_path).info
        assert main(["convert", str(star_set.write()), "-o", str(store_path), "--workers", "0"]) == 2
        remedy = "pass another -o, or --overwrite to replace it"
        assert capsys.readouterr().err == f"drgn-ray: {store_path}: a particle store is already here; {remedy}.\n"
        assert ParticleStore(store_path).info == before

    def test_overwrite_replaces_a_store(self, star_set: StarSet, tmp_path: Path) -> None:
        star, output = str(star_set.write()), str(tmp_path / "a.zarr")
        assert main(["convert", star, "-o", output, "--workers", "0"]) == 0
        assert main(["convert", star, "-o", output, "--workers", "0", "--first", "5", "--overwrite"]) == 0
        assert len(ParticleStore(output)) == 5

    def test_overwrite_does_not_delete_a_folder_of_other_things(
        self, star_set: StarSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "thesis.tex").write_text("Three years of work.")
        words = ["convert", str(star_set.write()), "-o", str(tmp_path / "home"), "--workers", "0", "--overwrite"]
        assert main(words) == 2
        assert f"{tmp_path}/home" in capsys.readouterr().err
        assert (tmp_path / "home" / "thesis.tex").read_text() == "Three years of work."

    @pytest.mark.parametrize("place", ["file.txt", "file.txt/below.zarr"])
    def test_a_place_where_no_folder_can_be_is_no_traceback(
        self, place: str, star_set: StarSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file.txt").write_text("text")
        words = ["convert", str(star_set.write()), "-o", str(tmp_path / place), "--workers", "0", "--overwrite"]
        assert main(words) == 2
        assert "Traceback" not in capsys.readouterr().err
        assert (tmp_path / "file.txt").read_text() == "text"
