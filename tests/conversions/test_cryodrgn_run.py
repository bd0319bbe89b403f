"""Runs go from drgn_ray to cryoDRGN and back: the real program opens ours, and we open those of the real program."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from star_sets import read_stack

from conversions.cryodrgn import read_pickle, read_pickles
from conversions.cryodrgn_run import export_run, import_run
from conversions.cryodrgn_write import write_inputs, write_pickle, write_selection
from conversions.driver import Options, convert
from conversions.inputs import read_particles
from drgn_ray.analysis.volumes import decode
from drgn_ray.config import ModelConfig, ResourcesConfig, RunConfig, TrainingConfig
from drgn_ray.distributed.embed import embed
from drgn_ray.distributed.train import train
from drgn_ray.errors import UserError
from drgn_ray.models.vae import VAE
from drgn_ray.particles.store import ParticleStore
from drgn_ray.physics.fourier import hartley, volume_from_hartley
from drgn_ray.physics.lattice import half_disc
from drgn_ray.training.checkpoint import load_position
from drgn_ray.training.embed import load_latents, trained_model
from drgn_ray.training.report import LogReporter
from drgn_ray.training.run_directory import RunDirectory

Z = np.array([0.3, -0.5])
ROUNDING = 1e-5
NETWORKS = {
    "gaussian": ModelConfig(zdim=2, enc_dim=32, enc_layers=2, dec_dim=32, dec_layers=2),
    # Square first layer of the decoder (6 * 5 + 2) and last of the encoder, which are residual in cryoDRGN.
    "geom_full": ModelConfig(zdim=2, enc_dim=4, enc_layers=1, dec_dim=32, dec_layers=0, pe_type="geom_full", pe_dim=5),
}


@pytest.fixture(scope="module")
def store(store_path: Path) -> ParticleStore:
    return ParticleStore(store_path)


def train_here(run: RunDirectory, config: RunConfig) -> None:
    run.begin(config)
    train(config, run, partial(LogReporter, run, config.training.num_epochs))
    embed(run, ParticleStore(config.particles), num_workers=0).save(run.latents_file)


@pytest.fixture(scope="module")
def trained(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDirectory]:
    """A run of ours for each network."""
    runs = {name: RunDirectory(tmp_path_factory.mktemp("ours") / name) for name in NETWORKS}
    for name, run in runs.items():
        config = RunConfig(
            particles=str(store_path),
            model=NETWORKS[name],
            training=TrainingConfig(num_epochs=1, precision="fp32", lr=5e-3),
            resources=ResourcesConfig(num_workers=0),
        )
        train_here(run, config)
    return runs


@pytest.fixture(scope="module")
def exported(trained: dict[str, RunDirectory], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp("exported") / name for name in trained}
    for name, run in trained.items():
        export_run(run, folders[name])
    return folders


def network_of(run: RunDirectory) -> tuple[VAE, ParticleStore]:
    config = run.config()
    store = ParticleStore(config.particles)
    return trained_model(run, config, store, torch.device("cpu")), store


@torch.inference_mode()
def decode_as_cryodrgn(run: RunDirectory, z: np.ndarray) -> np.ndarray:
    """Our volume, but where the half-spaces meet (k_z = 0, and Nyquist on the z axis).

    There we take the mean of the network's values at k and, conjugated, at -k; cryoDRGN keeps the first.
    """
    network, store = network_of(run)
    size, half = store.info.box_size, store.info.box_size // 2
    unit = store.info.hartley_std * store.info.scale
    spectrum = hartley(torch.tensor(decode(network, z, store.info)), num_dims=3)
    k = torch.nn.functional.pad(half_disc(size).k, (0, 1))
    k = torch.cat([k, torch.tensor([[0, 0, 0], [0, 0, -half]])])
    real, imag = (part[0] * unit for part in network.decoder.points(torch.tensor(z).float()[None], k / size))
    mirrored = (k > -half).all(dim=1)  # +D/2 is not in the volume
    spectrum[tuple((half - k[mirrored]).flip(-1).T)] = (real + imag)[mirrored]
    spectrum[tuple((half + k).flip(-1).T)] = real - imag
    return volume_from_hartley(spectrum).numpy()


def assert_same_volume(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.99999
    assert np.abs(ours - theirs).max() < ROUNDING * np.abs(theirs).max()


# Ours, opened by cryoDRGN


@pytest.fixture(scope="module")
def analyzed(exported: dict[str, Path], cryodrgn: Callable[..., None]) -> Path:
    cryodrgn("analyze", exported["gaussian"], 1, "--skip-umap", "--ksample", 4, "--pc", 1, "--n-per-pc", 2)
    return exported["gaussian"] / "analyze.1"


def test_eval_vol_decodes_our_run_as_we_do(
    exported: dict[str, Path], trained: dict[str, RunDirectory], cryodrgn: Callable[..., None], tmp_path: Path
) -> None:
    folder = exported["gaussian"]
    words = ["-c", folder / "config.yaml", "-z", *Z, "-o", tmp_path / "volume.mrc"]
    cryodrgn("eval_vol", folder / "weights.1.pkl", *words)
    assert_same_volume(decode_as_cryodrgn(trained["gaussian"], Z), mrcfile.read(tmp_path / "volume.mrc"))


def test_analyze_finds_our_particles_and_decodes_them(
    analyzed: Path, trained: dict[str, RunDirectory], store: ParticleStore
) -> None:
    """Its centres are rows of our latents, its volumes ours; it reads Å/px from the CTF and losses from the log."""
    z = load_latents(trained["gaussian"].latents_file).z
    nearest = np.loadtxt(analyzed / "kmeans4/centers_ind.txt").astype(int)
    centres = np.loadtxt(analyzed / "kmeans4/z_values.txt")
    np.testing.assert_allclose(z[nearest], centres, rtol=1e-6)
    with mrcfile.open(analyzed / "kmeans4/vol_001.mrc") as file:
        assert_same_volume(decode_as_cryodrgn(trained["gaussian"], centres[0]), np.asarray(file.data))
        assert file.voxel_size.x == pytest.approx(store.info.apix)
    assert (analyzed / "learning_curve_epoch1.png").exists()


def test_graph_traversal_walks_through_our_latents(
    exported: dict[str, Path], trained: dict[str, RunDirectory], cryodrgn: Callable[..., None], tmp_path: Path
) -> None:
    z = load_latents(trained["gaussian"].latents_file).z
    neighbours = np.argsort(np.linalg.norm(z - np.median(z, axis=0), axis=1))[[0, 40]]
    files = ["-o", tmp_path / "path.txt", "--outind", tmp_path / "rows.txt"]
    wide = ["--max-neighbors", 60, "--avg-neighbors", 50]
    cryodrgn("graph_traversal", exported["gaussian"] / "z.1.pkl", "--anchors", *neighbours, *wide, *files)
    rows = np.loadtxt(tmp_path / "rows.txt").astype(int)
    assert list(rows[[0, -1]]) == list(neighbours)
    np.testing.assert_allclose(np.loadtxt(tmp_path / "path.txt"), z[rows], rtol=1e-5)


def test_the_exported_particles_are_those_of_the_store(
    exported: dict[str, Path], store: ParticleStore, tmp_path: Path
) -> None:
    """Read again by our own reader, which the real program's files have tested."""
    folder = exported["gaussian"]
    poses, ctf = str(folder / "poses.pkl"), str(folder / "ctf.pkl")
    table = read_particles(str(folder / "particles.mrcs"), poses=poses, ctf=ctf)
    for name, column in table.columns.items():
        if name not in ("half_set", "optics_group"):
            np.testing.assert_allclose(column, store.columns[name], rtol=1e-6, atol=1e-6, err_msg=name)
    images = read_stack(folder / "particles.mrcs")
    np.testing.assert_array_equal(images, store.read_images(slice(0, 300)).astype(np.float32) * store.info.scale)


def test_chosen_rows_are_written_in_their_order(store: ParticleStore, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).permutation(300)[:100]
    write_inputs(tmp_path, store, rows)
    whole = store.read_images(slice(0, 300)).astype(np.float32) * store.info.scale
    with mrcfile.open(tmp_path / "particles.mrcs") as file:
        np.testing.assert_array_equal(file.data, whole[rows])
        assert (file.header.mode, file.header.ispg, file.voxel_size.x) == (2, 0, store.info.apix)
    rotation, fraction = read_pickle(str(tmp_path / "poses.pkl"))
    np.testing.assert_array_equal(rotation, store.columns["rotation"][rows])
    np.testing.assert_allclose(fraction * 32 * 6.0, store.columns["translation"][rows], atol=1e-4)
    ctf = read_pickle(str(tmp_path / "ctf.pkl"))
    assert (ctf.shape, ctf.dtype, ctf[0, 0]) == ((100, 9), np.float32, 32)
    np.testing.assert_array_equal(ctf[:, 2], store.columns["defocus_u"][rows])
    assert sorted(os.listdir(tmp_path)) == ["ctf.pkl", "particles.mrcs", "poses.pkl"]


def test_pickles_name_what_numpy_1_and_2_both_have(tmp_path: Path) -> None:
    arrays = np.arange(12, dtype=np.float32).reshape(3, 4), np.array([b"cnumpy._core.multiarray\n"])
    write_pickle(tmp_path / "two.pkl", arrays, np.arange(3))
    write_selection(tmp_path / "ind.pkl", np.array([5, 2], np.int32))
    with open(tmp_path / "two.pkl", "rb") as file:
        again, numbers = pickle.load(file), pickle.load(file)
    np.testing.assert_array_equal(again[0], arrays[0])
    np.testing.assert_array_equal(again[1], arrays[1])
    np.testing.assert_array_equal(numbers, np.arange(3))
    written = (tmp_path / "ind.pkl").read_bytes()
    assert b"numpy.core.multiarray" in written
    assert b"numpy._core" not in written
    selection = pickle.loads(written)
    assert (list(selection), selection.dtype) == ([5, 2], np.int64)


# Theirs, opened by us

TRAININGS = {
    # name: (their flags, sign of their volume)
    "gaussian": (["--enc-dim", 4, "--dec-dim", 32, "--beta", 0.7, "-b", 8], 1),
    # Another sign and spread of the images, no window, and square first layers of both networks.
    "geom_lowf": (
        ["--enc-dim", 796, "--dec-dim", 32, "--pe-dim", 5, "--uninvert-data", "--norm", 0, 50, "--no-window"],
        -1,
    ),
}


@pytest.fixture(scope="module", params=TRAININGS)
def theirs(
    request: pytest.FixtureRequest,
    store: ParticleStore,
    cryodrgn: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Path]:
    """A run of the real program on our particles.

    It multiplies shifts by D + 1, so they are written smaller by D / (D + 1); else its latents differ from ours (here
    by 0.02 on average, 0.1 at most), as they do from those of an image shifted right.
    """
    folder = tmp_path_factory.mktemp("theirs")
    write_inputs(folder, store, np.arange(len(store)))
    rotation, fraction = read_pickle(str(folder / "poses.pkl"))
    write_pickle(folder / "poses.pkl", (rotation, fraction * np.float32(32 / 33)))
    inputs = [folder / "particles.mrcs", "--poses", folder / "poses.pkl", "--ctf", folder / "ctf.pkl"]
    network = ["--zdim", 2, "--enc-layers", 1, "--dec-layers", 1, "--pe-type", request.param]
    words = ["-o", folder / "run", "-n", 2, "--lr", 2e-3, "--seed", 0, "--no-amp"]
    cryodrgn("train_vae", *inputs, *network, *words, *TRAININGS[request.param][0])
    return request.param, folder / "run"


@pytest.fixture(scope="module")
def imported(theirs: tuple[str, Path], store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return import_run(theirs[1], tmp_path_factory.mktemp("imported") / "run", particles=store_path)


def test_the_latents_of_an_imported_run_are_cryodrgns(theirs: tuple[str, Path], imported: RunDirectory) -> None:
    z, z_logvar = read_pickles(str(theirs[1] / "z.2.pkl"), 2)
    kept = load_latents(imported.latents_file)
    np.testing.assert_array_equal(kept.z, z)
    np.testing.assert_array_equal(kept.z_logvar, z_logvar)
    found = embed(imported, network_of(imported)[1], num_workers=0)
    assert z.std() > 0.1
    np.testing.assert_allclose(found.z, z, rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(found.z_logvar, z_logvar, rtol=0, atol=ROUNDING)


def test_the_volumes_of_an_imported_run_are_cryodrgns(theirs: tuple[str, Path], imported: RunDirectory) -> None:
    """Those of the analysis that follows its training, which calls eval_vol."""
    name, folder = theirs
    kmeans = folder / "analyze.2/kmeans20"
    for index in (0, 19):
        volume = mrcfile.read(kmeans / f"vol_{index + 1:03d}.mrc") * np.float32(TRAININGS[name][1])
        assert_same_volume(decode_as_cryodrgn(imported, np.loadtxt(kmeans / "z_values.txt")[index]), volume)


def test_an_imported_run_has_their_settings_and_can_be_trained_on(
    theirs: tuple[str, Path], imported: RunDirectory, tmp_path: Path
) -> None:
    run = RunDirectory(shutil.copytree(imported.path, tmp_path / "run"))
    config = run.config()
    beta, batch_size = (0.7, 8) if theirs[0] == "gaussian" else (None, 16)
    assert (config.model.pe_type, config.model.beta) == (theirs[0], beta)
    assert (config.training.lr, config.training.batch_size, config.training.num_epochs) == (2e-3, batch_size, 2)
    longer = {"training": config.training.model_copy(update={"num_epochs": 3})}
    here = {"resources": ResourcesConfig(num_workers=0)}
    train_here(run, config.model_copy(update=longer | here))
    lines = [yaml.safe_load(line) for line in run.metrics_file.read_text().splitlines()]
    losses = [line["train_epoch/loss"] for line in lines if line["kind"] == "epoch"]
    assert len(losses) == 3
    assert losses[2] < losses[1] < losses[0]


# Both ways, and what is refused


@pytest.mark.parametrize("name", NETWORKS)
def test_a_run_comes_back_as_it_went(
    name: str, exported: dict[str, Path], trained: dict[str, RunDirectory], store_path: Path, tmp_path: Path
) -> None:
    run, again = trained[name], import_run(exported[name], tmp_path / "again", particles=store_path, epoch=1)
    before, after = (load_file(next(r.checkpoints.iterdir()) / "model.safetensors") for r in (run, again))
    assert before.keys() == after.keys()
    for tensor in before:
        torch.testing.assert_close(after[tensor], before[tensor], rtol=0, atol=1e-7)
    for mine, its in zip(load_latents(run.latents_file)[:3], load_latents(again.latents_file)[:3], strict=True):
        np.testing.assert_array_equal(mine, its)
    assert again.config().model == run.config().model.model_copy(update={"beta": 0.5})


def test_the_optimiser_has_moments_for_all_but_the_random_frequencies(exported: dict[str, Path]) -> None:
    saved = torch.load(exported["gaussian"] / "weights.pkl", weights_only=True)
    names = list(saved["model_state_dict"])
    (group,) = saved["optimizer_state_dict"]["param_groups"]
    assert group["params"] == list(range(len(names)))
    for index, name in enumerate(names):
        if name == "decoder.rand_freqs":
            assert index not in saved["optimizer_state_dict"]["state"]
        else:
            moments = saved["optimizer_state_dict"]["state"][index]
            assert moments["exp_avg"].shape == moments["exp_avg_sq"].shape == saved["model_state_dict"][name].shape


def test_the_log_tells_the_history(exported: dict[str, Path], store_path: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported["gaussian"], tmp_path / "theirs")
    (folder / "run.log").write_text(
        "# [Train Epoch: 1/1] [300/300 particles] gen loss=0.6, kld=1.0, beta=0.5, loss=0.7\n"
        "# =====> Epoch: 1 Average gen loss = 0.61, KLD = 1.5, total loss = 0.62; Finished in 1 day, 2:00:03.5\n"
        "# =====> Epoch: 2 Average gen loss = 0.51, KLD = 1.5, total loss = 0.52; Finished in 0:00:03.5\n"
    )
    (line,) = load_position(import_run(folder, tmp_path / "run", particles=store_path).checkpoints).history
    losses = {"train_epoch/recon_loss": 0.61, "train_epoch/kld": 1.5, "train_epoch/loss": 0.62}
    assert line == {"kind": "epoch", "step": 300, "epoch": 1, "perf/epoch_seconds": 93603.5} | losses


def change(folder: Path, section: str, **values: Any) -> None:
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings[section] |= values
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


@pytest.mark.parametrize(
    ("section", "values", "sentence"),
    [
        (
            "model_args",
            {"domain": "hartley"},
            "domain is 'hartley', which drgn_ray's networks cannot have; train with domain",
        ),
        ("model_args", {"encode_mode": "conv"}, "encode_mode is 'conv'"),
        ("model_args", {"encode_mode": "tilt"}, "encode_mode is 'tilt'"),
        ("model_args", {"activation": "leaky_relu"}, "activation is 'leaky_relu'"),
        (
            "model_args",
            {"enc_mask": 12},
            "enc_mask is 12, .*networks cannot have; train with enc_mask 16",
        ),
        ("model_args", {"enc_mask": -1}, "enc_mask is -1"),
        ("model_args", {"pe_type": "none"}, "pe_type = 'none'"),
        ("model_args", {"pe_type": "linear_lowf"}, "pe_type = 'linear_lowf'"),
        ("model_args", {"qdim": "many"}, "model_args: qdim: input should be a valid integer"),
        ("model_args", {"qdim": 33}, r"weights.pkl: encoder.main.0.weight has the shape \(32, 796\), not \(33, 796\)"),
        ("dataset_args", {"window_r": 0.9}, "window_r is 0.9"),
        ("dataset_args", {"keepreal": True}, "keepreal is True"),
        ("dataset_args", {"do_pose_sgd": True}, "do_pose_sgd is True"),
        ("dataset_args", {"norm": [1.0, 2.0]}, "the mean of norm is 1.0"),
        ("dataset_args", {"ctf": None}, "its images are with CTF, unlike those of"),
        ("lattice_args", {"D": 65}, "its images have 32 px, those of .* 64 px; convert those particles with -D 64"),
    ],
)
def test_what_our_networks_cannot_be_is_refused(
    section: str,
    values: dict[str, Any],
    sentence: str,
    exported: dict[str, Path],
    store_path: Path,
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(exported["gaussian"], tmp_path / "theirs")
    change(folder, section, **values)
    if "D" in values:
        change(folder, "model_args", enc_mask=32)
    with pytest.raises(UserError, match=sentence):
        import_run(folder, tmp_path / "run", particles=store_path)
    assert os.listdir(tmp_path) == ["theirs"]


def damage_weights(folder: Path) -> None:
    (folder / "weights.pkl").write_bytes((folder / "weights.pkl").read_bytes()[:5000])


def plant_code(folder: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(folder / "it ran"),)

    with open(folder / "z.pkl", "wb") as file:
        pickle.dump(np.zeros((300, 2), np.float32), file)
        pickle.dump(Hostile(), file)


def mix_up(folder: Path) -> None:
    z, z_logvar = read_pickles(str(folder / "z.pkl"), 2)
    write_pickle(folder / "z.pkl", z[::-1].copy(), z_logvar[::-1].copy())


def lose_latents(folder: Path) -> None:
    z, z_logvar = read_pickles(str(folder / "z.pkl"), 2)
    write_pickle(folder / "z.pkl", z * np.float32("nan"), z_logvar)


def shorten(folder: Path) -> None:
    z, z_logvar = read_pickles(str(folder / "z.pkl"), 2)
    write_pickle(folder / "z.pkl", z[:200], z_logvar[:200])


def lose_numbers(folder: Path) -> None:
    saved = torch.load(folder / "weights.pkl", weights_only=True)
    saved["model_state_dict"]["encoder.main.0.bias"][3] = torch.nan
    torch.save(saved, folder / "weights.pkl")


def make_homogeneous(folder: Path) -> None:
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["model_args"] = {"layers": 3, "dim": 32, "pe_type": "gaussian", "domain": "fourier"}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (damage_weights, "weights.pkl: these are not the weights of `cryodrgn train_vae`"),
        (plant_code, "z.pkl: this is not a pickle of numpy arrays"),
        (mix_up, "particles.zarr: the network's latents of its first particles are not those in .*z.pkl"),
        (lose_latents, "particles.zarr: the network's latents of its first particles are not those in .*z.pkl"),
        (shorten, r"z.pkl: it holds arrays of shape \(200, 2\) and \(200, 2\) for 300 particles"),
        (lose_numbers, "weights.pkl: its weights are no numbers; pass an earlier epoch"),
        (
            make_homogeneous,
            "config.yaml: it is not of `cryodrgn train_vae` .model_args: zdim: field required.",
        ),
        (lambda folder: (folder / "config.yaml").unlink(), "config.yaml: there is no such file"),
        (lambda folder: (folder / "config.yaml").write_text("a: [1"), "config.yaml: cannot be read as YAML"),
        (lambda folder: (folder / "config.yaml").write_text("- 1"), "config.yaml: it is not of `cryodrgn train_vae`"),
        (lambda folder: (folder / "z.pkl").unlink(), "z.pkl: there is no such pickle"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(
    harm: Callable[[Path], Any], sentence: str, exported: dict[str, Path], store_path: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(exported["gaussian"], tmp_path / "theirs")
    harm(folder)
    with pytest.raises(UserError, match=sentence):
        import_run(folder, tmp_path / "run", particles=store_path)
    assert os.listdir(tmp_path) == ["theirs"]
    assert not (folder / "it ran").exists()


def test_an_epoch_that_is_not_there_is_refused(exported: dict[str, Path], store_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"weights.7.pkl: there is no such file \(there are epochs 1\)"):
        import_run(exported["gaussian"], tmp_path / "run", particles=store_path, epoch=7)


def test_a_schedule_of_beta_is_lost_with_a_warning(
    exported: dict[str, Path], store_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(exported["gaussian"], tmp_path / "theirs")
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("- --beta\n- '0.5'", "- --beta\n- a"))
    run = import_run(folder, tmp_path / "run", particles=store_path)
    assert run.config().model.beta is None
    assert "its --beta a was no constant weight; training on here would take 1/zdim" in caplog.text


def test_nothing_is_written_over(
    exported: dict[str, Path], trained: dict[str, RunDirectory], store_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(UserError, match="something is already here"):
        import_run(exported["gaussian"], tmp_path, particles=store_path)
    with pytest.raises(UserError, match="something is already here"):
        export_run(trained["gaussian"], tmp_path)
    assert os.listdir(tmp_path) == ["note.txt"]


def test_a_run_without_its_own_latents_is_not_exported(trained: dict[str, RunDirectory], tmp_path: Path) -> None:
    run = RunDirectory(shutil.copytree(trained["gaussian"].path, tmp_path / "run"))
    latents = load_latents(run.latents_file)
    type(latents)(*(part[:200] for part in latents[:-1]), latents.images_seen).save(run.latents_file)
    with pytest.raises(UserError, match="these latents are not those of the newest .*; type `drgn-ray embed"):
        export_run(run, tmp_path / "theirs")
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize(
    ("kind", "found"), [({"model": "linear"}, "only a VAE"), ({"decoder": "basis"}, "cryoDRGN has no basis decoder")]
)
def test_a_model_that_cryodrgn_has_not_is_not_exported(kind: dict[str, str], found: str, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.begin(RunConfig(particles="/particles.zarr", model=ModelConfig(**kind)))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=found):
        export_run(run, tmp_path / "theirs")


def test_particles_out_of_order_are_exported_with_their_latents(simulated: Path, tmp_path: Path) -> None:
    """A selection may name rows in any order; the files follow the source, as latents do."""
    write_selection(tmp_path / "ind.pkl", np.random.default_rng(2).permutation(300)[:100])
    table = read_particles(str(simulated), ind=str(tmp_path / "ind.pkl"))
    convert(table, Options(str(tmp_path / "mixed.zarr"), 32, "float16", None, False, 0, "drgn-ray convert"))
    run = RunDirectory(tmp_path / "run")
    training = TrainingConfig(num_epochs=1, precision="fp32")
    here = ResourcesConfig(num_workers=0)
    particles = str(tmp_path / "mixed.zarr")
    train_here(run, RunConfig(particles=particles, model=NETWORKS["gaussian"], training=training, resources=here))
    export_run(run, tmp_path / "theirs")
    store = ParticleStore(tmp_path / "mixed.zarr")
    order = np.argsort(store.columns["source_row"])
    rotation, _ = read_pickle(str(tmp_path / "theirs/poses.pkl"))
    np.testing.assert_array_equal(rotation, store.columns["rotation"][order])
    images = store.read_images(slice(0, 100)).astype(np.float32) * store.info.scale
    np.testing.assert_array_equal(read_stack(tmp_path / "theirs/particles.mrcs"), images[order])
    z, _ = read_pickles(str(tmp_path / "theirs/z.pkl"), 2)
    np.testing.assert_array_equal(z, load_latents(run.latents_file).z)
