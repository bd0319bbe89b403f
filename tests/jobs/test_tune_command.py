"""``drgn-ray tune`` on a real Ray: ranks its trials, tells MLflow, gives all CPUs back, and goes on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from servers import own_ray
from small_sweeps import BASE

from drgn_ray.analysis.run import load_run
from drgn_ray.config import DataConfig, TrainingConfig
from drgn_ray.distributed.tune import plan_slots
from drgn_ray.errors import ResourceError
from drgn_ray.particles.store import ParticleStore
from drgn_ray.tracking.run import TrackedRun
from drgn_ray.training.checkpoint import load_position
from drgn_ray.training.loop import particle_order
from drgn_ray.training.run_directory import RunDirectory
from drgn_ray.training.sweep_directory import SweepDirectory
from jobs.cli import main

SWEEP = f"""
space:
  model.zdim: {{choice: [1, 2]}}
  training.lr: {{choice: [3.0e-3, 1.0e+9]}}
search: grid
{BASE}  training.num_epochs: 2
"""


@pytest.fixture(scope="module")
def two_cpus() -> Iterator[None]:
    with own_ray(2):
        yield


def test_a_sweep_ranks_its_trials_and_goes_on_where_it_was(
    store_path: Path,
    tmp_path: Path,
    two_cpus: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import ray
    from ray.util import placement_group_table

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    words = ["tune", str(store_path), str(tmp_path / "sweep.yaml"), "-o", str(tmp_path / "sweeps" / "a")]
    assert main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    for chosen in ("1  model.zdim 1  training.lr 0.003", "4  model.zdim 2  training.lr 1000000000.0"):
        assert re.search(rf"trial_{chosen}  \(0.0\d M weights, 2 epochs, \d+ s in full, [0-3]\.\d GB\)", said)
    assert len(re.findall("s in full, ", said)) == 4
    assert "2 of 2 kinds of trials" in said  # other learning rates cost the same
    assert re.search(r"2 at a time, each with CPUs: 1, GPUs: 0; all in full: \d+ s\n", said)
    assert not (tmp_path / "sweeps").exists()

    assert main(words) == 0
    directory = SweepDirectory(tmp_path / "sweeps" / "a")
    table = pd.read_csv(directory.path / "leaderboard.csv").set_index("trial")
    assert table["state"].to_dict() | {"trial_1": "", "trial_3": ""} == {
        "trial_1": "",
        "trial_2": "failed",  # it diverged, and ended no other
        "trial_3": "",
        "trial_4": "failed",
    }
    winner = table.index[0]
    assert winner in ("trial_1", "trial_3")
    assert table["state"][winner] == "finished"
    assert ray.available_resources()["CPU"] == 2
    assert {group["state"] for group in placement_group_table().values()} <= {"REMOVED"}
    assert not list(directory.path.glob(".ray*"))
    out = capsys.readouterr().out
    assert f"winner  {directory.run(winner).path}" in out
    assert "/#/compare-runs?" in out
    assert f"next    drgn-ray tune {store_path} {tmp_path / 'sweep.yaml'} -o {directory.path} --promote" in out

    client = MlflowClient(f"sqlite:///{tmp_path / 'sweeps' / 'mlflow.db'}")
    runs = {
        run.info.run_name: run for run in client.search_runs([e.experiment_id for e in client.search_experiments()])
    }
    parent = runs.pop("tune a")
    assert set(runs) == {f"trial_{number}" for number in range(1, 5)}
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    assert {name: run.info.status for name, run in runs.items() if name in ("trial_2", winner)} == {
        "trial_2": "FAILED",
        winner: "FINISHED",
    }
    assert "| trial | state |" in parent.data.tags["mlflow.note.content"]
    assert [name for name, run in runs.items() if run.data.tags["drgn_ray.winner"] == "true"] == [winner]
    assert len(client.get_metric_history(runs[winner].info.run_id, "held_out/gain")) == 2
    shown = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert shown >= {"leaderboard.csv", "parallel_coordinates.html", "gain.png", "winner"}
    of_winner = {file.path for file in client.list_artifacts(parent.info.run_id, "winner")}
    assert of_winner == {"winner/explorer.html", "winner/kmeans20"}
    assert "winner/explorer.html" in parent.data.tags["mlflow.note.content"]

    (directory.path / "outcomes" / f"{winner}.json").unlink()  # as of a driver that was killed at its last moment
    before = directory.run(winner).log_file.read_text()
    assert main([*words, "--promote", "--no-analysis"]) == 0
    assert directory.run(winner).log_file.read_text() == before  # nothing was trained again
    served = set(re.findall(r"`drgn-ray ui (\S+)` runs", capsys.readouterr().out))
    assert served == {str(tmp_path / "sweeps")}  # also of the run within the sweep
    assert pd.read_csv(directory.path / "leaderboard.csv").set_index("trial")["gain"].equals(table["gain"])

    of_winner, promoted = directory.run(winner).config(), RunDirectory(directory.path / "promoted")
    assert promoted.config().model == of_winner.model
    back_offs = TrainingConfig().back_offs  # of which trials have none
    assert promoted.config().training == of_winner.training.model_copy(update={"back_offs": back_offs})
    order = particle_order(promoted.config(), ParticleStore(store_path))
    assert order.val_fraction == DataConfig().val_fraction
    assert load_position(promoted.checkpoints).images_seen == 2 * order.num_rows(order.train_chunks())
    run, sweep = (client.get_run(TrackedRun(each).run_id) for each in (promoted, directory.tracked))
    assert run.info.status == sweep.info.status == "FINISHED"
    assert run.data.tags["drgn_ray.promoted_from"] == sweep.info.run_id
    assert sweep.data.tags["drgn_ray.promoted"] == run.info.run_id
    assert run.info.experiment_id == sweep.info.experiment_id


def test_a_dry_run_says_how_many_trials_optuna_will_add(
    store_path: Path, tmp_path: Path, two_cpus: None, capsys: pytest.CaptureFixture[str]
) -> None:
    space = "space: {training.lr: {loguniform: [1.0e-4, 1.0e-2]}}\nsearch: optuna\nnum_samples: 6"
    (tmp_path / "sweep.yaml").write_text(f"{space}\n{BASE}  training.num_epochs: 1\n")
    words = ["tune", str(store_path), str(tmp_path / "sweep.yaml"), "-o", str(tmp_path / "a"), "--dry-run"]
    assert main(words) == 0
    assert "then 4 more, which Optuna chooses as trials end" in capsys.readouterr().out


RANKED = f"""
space:
  model.zdim: {{choice: [1, 3]}}
search: grid
scheduler: none
{BASE}  training.num_epochs: 1
"""


def test_the_winner_is_what_the_user_ranks_by(
    store_path: Path, tmp_path: Path, two_cpus: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.yaml").write_text(RANKED)
    directory = SweepDirectory(tmp_path / "a")
    words = ["tune", str(store_path), str(tmp_path / "sweep.yaml"), "-o", str(directory.path), "--no-analysis"]
    for rank_by in ("half_sets", "back_projection"):
        assert main([*words, "--rank-by", rank_by]) == 0
        table = pd.read_csv(directory.path / "leaderboard.csv")
        assert table[rank_by].is_monotonic_decreasing
        assert table[rank_by].notna().all()
        out = capsys.readouterr().out
        assert f"winner  {directory.run(table['trial'][0]).path}" in out
        assert f"By {rank_by} **{table['trial'][0]}** leads" in out
        assert f"--promote --rank-by {rank_by}" in out
    assert (directory.path / "halves" / "trial_1" / "comparison.md").exists()
    configs = [load_run(directory.path / "halves" / "trial_2" / f"half{half}").config for half in (1, 2)]
    assert [config.data.half_set for config in configs] == [1, 2]
    assert {config.model.zdim for config in configs} == {3}
    assert main(words) == 0
    assert pd.read_csv(directory.path / "leaderboard.csv")["gain"].is_monotonic_decreasing


@pytest.mark.parametrize(
    ("cpus", "gpus", "nodes", "slots"),
    [
        (1, None, [{"CPU": 4}], (1, 0.0, 4)),
        (2, None, [{"CPU": 5}, {"CPU": 3}], (2, 0.0, 3)),
        (1, None, [{"CPU": 8, "GPU": 2}], (1, 1.0, 2)),
        (1, 0.1, [{"CPU": 80, "GPU": 3}], (1, 0.1, 30)),
        (4, 0.5, [{"CPU": 0}, {"CPU": 10, "GPU": 4}], (4, 0.5, 2)),
    ],
)
def test_as_many_trials_run_as_fit(
    cpus: int, gpus: float | None, nodes: list[dict[str, float]], slots: tuple[int, float, int]
) -> None:
    assert plan_slots(cpus, gpus, nodes) == slots


@pytest.mark.parametrize(
    ("num_workers", "cpus", "nodes", "count"),
    [
        (2, 1, [{"CPU": 3}], 1),
        (2, 1, [{"CPU": 5}], 1),  # two groups would leave one CPU to the readers of both
        (2, 1, [{"CPU": 6}], 2),
        (2, 2, [{"CPU": 5}, {"CPU": 5}], 2),
        (3, 3, [{"CPU": 4}, {"CPU": 4}, {"CPU": 4}], 1),  # over machines
        (1, 1, [{"CPU": 9, "GPU": 8}], 4),
        (2, 4, [{"CPU": 0}, {"CPU": 32, "GPU": 4}, {"CPU": 32, "GPU": 4}], 4),
    ],
)
def test_groups_of_workers_leave_each_a_cpu_to_read(
    num_workers: int, cpus: int, nodes: list[dict[str, float]], count: int
) -> None:
    assert plan_slots(cpus, None, nodes, num_workers) == (0, 0.0, count)
    total = sum(node["CPU"] for node in nodes)
    assert total - count * num_workers * cpus >= max(count, sum(node["CPU"] > 0 for node in nodes))


def test_a_trial_that_fits_nowhere_is_refused() -> None:
    with pytest.raises(ResourceError, match="a trial of 4 workers: with 1 CPU each and one CPU a machine left"):
        plan_slots(1, None, [{"CPU": 4}], num_workers=4)
    with pytest.raises(ResourceError, match="2 workers: with 1 CPU and a GPU each .* on 1 machine with 8 CPUs and 1"):
        plan_slots(1, None, [{"CPU": 8, "GPU": 1}], num_workers=2)
    with pytest.raises(ResourceError, match="--gpus-per-trial 0.5: each worker of a trial takes a GPU; leave it out"):
        plan_slots(1, 0.5, [{"CPU": 8, "GPU": 2}], num_workers=2)
    with pytest.raises(ResourceError, match="a trial of 8 CPUs and 0 GPUs: no machine has as much"):
        plan_slots(8, None, [{"CPU": 4}, {"CPU": 4}])
    with pytest.raises(ResourceError, match="it is a share of a GPU, or a count"):
        plan_slots(1, 1.5, [{"CPU": 4, "GPU": 2}])
