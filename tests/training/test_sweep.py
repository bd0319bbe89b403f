"""What a sweep is: spaces in YAML, the trials drawn from them, and what is refused before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from drgn_ray.errors import ConfigError, RunError
from drgn_ray.training.leaderboard import leaderboard, markdown
from drgn_ray.training.run_directory import RunDirectory
from drgn_ray.training.sweep import READY_MADE, Trial, draw_trials, read_sweep
from drgn_ray.training.sweep_directory import CONSENSUS, LINEAR, Outcome, SweepDirectory


def drawn(text: str, folder: Path) -> list[Trial]:
    file = folder / "sweep.yaml"
    file.write_text(text)
    return draw_trials(read_sweep(str(file)), "/particles.zarr", 10_000)


@pytest.mark.parametrize("file", sorted(READY_MADE.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_ready_made_sweep_can_be_drawn(file: Path) -> None:
    trials = draw_trials(read_sweep(file.stem), "/particles.zarr", 10_000)
    assert len({str(trial.config) for trial in trials}) == len(trials)


def test_the_paper_s_sweep_is_the_paper_s_table() -> None:
    trials = draw_trials(read_sweep("paper"), "/particles.zarr", 10_000)
    sizes = [(trial.config.model.dec_dim, trial.config.model.dec_layers) for trial in trials]
    assert sizes == [(128, 3), (256, 3), (512, 3), (1024, 3), (1024, 10)]
    assert all(
        (t.config.model.enc_dim, t.config.model.enc_layers) == size for t, size in zip(trials, sizes, strict=True)
    )


def test_settings_of_a_named_group_go_together_and_a_grid_is_whole(tmp_path: Path) -> None:
    trials = drawn(
        """
        space:
          model.zdim: {choice: [1, 2]}
          kind:
            choice:
              vae: {model.dec_dim: 64}
              one-volume: {model.model: linear, model.zdim: 0}
        search: grid
        base: {data.val_fraction: 0.3}
        """,
        tmp_path,
    )
    of_model = [(trial.config.model.model, trial.config.model.zdim) for trial in trials]
    assert of_model == [("vae", 1), ("linear", 0), ("vae", 2), ("linear", 0)]
    assert all(trial.config.data.val_fraction == 0.3 for trial in trials)


def test_draws_are_within_their_ranges_and_the_same_every_time(tmp_path: Path) -> None:
    text = """
        space:
          training.lr: {loguniform: [1e-4, 1e-2]}
          model.feat_sigma: {uniform: [0.5, 1.5]}
          model.zdim: {integer: [1, 3]}
        num_samples: 60
        """
    trials = drawn(text, tmp_path)
    assert trials == drawn(text, tmp_path)
    rates = np.log10([trial.config.training.lr for trial in trials])
    assert -4 <= rates.min() < -3.7
    assert -2.3 < rates.max() <= -2
    assert {trial.config.model.zdim for trial in trials} == {1, 2, 3}


def test_samples_of_choices_are_drawn_without_repetition(tmp_path: Path) -> None:
    space = "space: {model.zdim: {choice: [1, 2, 3]}, training.lr: {choice: [1.0e-3, 1.0e-4]}}"
    assert len({tuple(trial.chosen.items()) for trial in drawn(f"{space}\nnum_samples: 6", tmp_path)}) == 6
    with pytest.raises(ConfigError, match="there are only 6 combinations; pass search: grid"):
        drawn(f"{space}\nnum_samples: 7", tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("space: {model.zdm: {choice: [1]}}", "model.zdm: there is no such setting; pass model.zdim."),
        ("space: {zdim: {choice: [1]}}", "zdim: there is no such setting; pass model.zdim."),
        ("space: {training.seed: {choice: [1, 2]}}", "all trials are judged on the same held-out particles"),
        ("space: {resources.num_workers: {choice: [1, 2]}}", "resources.num_workers: it changes no result"),
        ("space: {model.zdim: {choice: [0]}}", "trial_1 (model.zdim 0): a vae has at least one latent dimension"),
        ("space: {model.zdim: {choice: [many]}}", "trial_1 (model.zdim many): model.zdim = 'many'"),
        (
            "space: {model.decoder: {choice: [coordinate, basis]}}\nbase: {model.pe_type: geom_ft}",
            "trial_2 (model.decoder basis): a basis decoder has no pe_type",
        ),
        ("space: {model.zdim: {choice: []}}", "space.model.zdim.choice"),
        ("space: {model.zdim: {integer: [3, 3]}}", "the range from 3 to 3 is empty"),
        ("space: {model.zdim: {choice: [1], integer: [1, 2]}}", "pass one of choice, uniform, loguniform, integer"),
        ("space: {training.lr: {loguniform: [1e-4, 1e-2]}}", "a grid has no end of values of training.lr"),
        ("space: {}", "space = {}"),
        ("spaces: {}", "spaces"),
        ("space: [", "it cannot be read as YAML"),
        (
            "space: {training.coarse_share: {choice: [0, 0.5]}}\nfidelity: resolution",
            "fidelity: resolution sets training.coarse_share",
        ),
        (
            "space: {model.zdim: {choice: [1, 2]}}\nscheduler: pbt",
            "model.zdim: scheduler: pbt hands weights from trial",
        ),
        ("space: {training.lr: {choice: [1.0e-3]}}\nscheduler: pbt", "a population of one"),
        ("space: {model.zdim: {choice: [1]}}\nobjectives: [minutes]", "pass [gain], or [gain, minutes]"),
        ("space: {model.zdim: {choice: [1]}}\nobjectives: [gain, minutes]", "pass search: optuna"),
        ("space: {model.zdim: {choice: [1]}}\nbase: {resources.num_workers: -1}", "resources.num_workers = -1"),
        ("space: {model.zdim: {choice: [1]}}\nbase: {resources.cpus_per_worker: null}", "null: as many trials run as"),
    ],
)
def test_a_mistake_is_one_sentence(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        drawn(f"{text}\nsearch: grid", tmp_path)
    assert said in str(caught.value)


def test_a_sweep_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(ConfigError, match="pass a file, or architecture, latent-dimension, paper, quick"):
        read_sweep("fast")


def test_trials_may_have_workers_of_one_cpu_if_nothing_else_is_said(tmp_path: Path) -> None:
    space = "space: {model.zdim: {choice: [1]}}\nsearch: grid"
    assert drawn(space, tmp_path)[0].config.resources.num_workers == 0
    resources = drawn(f"{space}\nbase: {{resources.num_workers: 2}}", tmp_path)[0].config.resources
    assert (resources.num_workers, resources.cpus_per_worker) == (2, 1)


def test_a_folder_of_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="holds something that is not a sweep"), SweepDirectory(tmp_path).claimed():
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_sweep_goes_on_with_the_trials_it_began_with_and_no_others(tmp_path: Path) -> None:
    text = "space: {training.lr: {loguniform: [1e-4, 1e-2]}}\nnum_samples: 3"
    trials, directory = drawn(text, tmp_path), SweepDirectory(tmp_path / "sweep")
    sweep = read_sweep(str(tmp_path / "sweep.yaml"))
    assert directory.begin(sweep, "/particles.zarr", trials) == trials
    assert directory.begin(sweep, "/particles.zarr", []) == trials
    other = sweep.model_copy(update={"num_samples": 4})
    with pytest.raises(ConfigError, match="another sweep is here, with other num_samples"):
        directory.begin(other, "/particles.zarr", trials)


def leave_position(run: RunDirectory, minutes: float = 1.0) -> None:
    epoch = {"epoch": 2, "val/recon_loss": 0.9, "val/kld": 3.0, "perf/total_seconds": 60 * minutes}
    checkpoint = run.checkpoints / "slice_000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / "position.json").write_text(json.dumps({"history": [epoch]}))


def test_the_leaderboard_compares_image_by_image(tmp_path: Path) -> None:
    """The best is first; one that is behind by less than its error may be as good."""
    trials = drawn("space: {model.zdim: {choice: [1, 2, 4]}}\nsearch: grid", tmp_path)
    directory, rng = SweepDirectory(tmp_path / "sweep"), np.random.default_rng(0)
    directory.begin(read_sweep(str(tmp_path / "sweep.yaml")), "/particles.zarr", trials)
    images = rng.normal(size=200) * 30  # some are told better than others, by all models
    directory.save_bounds(CONSENSUS, 0, images)
    directory.save_bounds(LINEAR, 0, images + 1)
    for trial, gained, noise in ((trials[0], 2.0, 0.1), (trials[1], 1.99, 0.5)):
        directory.save_bounds(trial.name, 1, images - 50)
        directory.save_bounds(trial.name, 2, images + gained + noise * np.tile(rng.permutation([-1.0, 1.0]), 100))
        leave_position(directory.run(trial.name))
    table = leaderboard(directory, trials)
    assert table["trial"].tolist() == ["trial_1", "trial_2", "trial_3"]
    assert table["gain"].tolist()[:2] == pytest.approx([2.0, 1.99], abs=1e-6)
    assert np.isnan(table["gain"][2])
    said = markdown(directory, table)
    assert "**trial_1** leads" in said
    assert "trial_2 may be as good. It is better than the linear subspace" in said


def test_of_two_objectives_the_leaderboard_marks_the_front(tmp_path: Path) -> None:
    """What gains most, and what gains less in less time; not what another beats in both, nor what did not finish."""
    trials = drawn("space: {model.zdim: {choice: [1, 2, 4, 8]}}\nsearch: grid", tmp_path)
    directory = SweepDirectory(tmp_path / "sweep")
    of_optuna = {"search": "optuna", "num_samples": 4, "scheduler": "none", "objectives": ["gain", "minutes"]}
    sweep = read_sweep(str(tmp_path / "sweep.yaml")).model_copy(update=of_optuna)
    directory.begin(sweep, "/particles.zarr", trials)
    for name in (CONSENSUS, LINEAR):
        directory.save_bounds(name, 0, np.zeros(2))
    for trial, gained, minutes in zip(trials, (3.0, 2.0, 1.0, 0.5), (9.0, 2.0, 4.0, 1.0), strict=True):
        directory.save_bounds(trial.name, 2, np.full(2, gained))
        leave_position(directory.run(trial.name), minutes)
        directory.end(trial.name, Outcome("failed" if trial is trials[3] else "finished"))
    table = leaderboard(directory, trials)
    assert dict(zip(table["trial"], table["on_front"], strict=True)) == {
        "trial_1": True,
        "trial_2": True,
        "trial_3": False,
        "trial_4": False,
    }
    assert "No other gains more in less time than trial_1, trial_2." in markdown(directory, table)
