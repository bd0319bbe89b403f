"""A step is the same however a batch is cut, over processes or over time, and some points stand for all."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.utils.flop_counter import FlopCounterMode

from drgn_ray.config import ModelConfig, TrainingConfig
from drgn_ray.models import build_model
from drgn_ray.models.decoder import CoordinateDecoder, Decoder
from drgn_ray.models.elbo import Sample
from drgn_ray.models.em import Subspace
from drgn_ray.models.model import Model
from drgn_ray.training import step
from drgn_ray.training.checkpoint import Position, load_state, save_checkpoint

BOX, COUNT, LR = 16, 8, 1e-2


def one_volume() -> Model:
    torch.manual_seed(0)
    settings = ModelConfig(model="homogeneous", dec_dim=16, dec_layers=1)
    return build_model(settings, box_size=BOX, data_sign=-1, hartley_std=4.0, ctf=False)


def batch() -> dict[str, Tensor]:
    rng = np.random.default_rng(0)
    seen = {
        "images": rng.normal(size=(COUNT, BOX, BOX)),
        "rotation": Rotation.random(COUNT, rng=rng).as_matrix(),
        "translation": np.zeros((COUNT, 2)),
    }
    optics = ("defocus_u", "defocus_v", "defocus_angle", "voltage", "cs", "amplitude_contrast", "phase_shift", "dose")
    ones = {name: np.ones(COUNT) for name in ("apix", "ctf_scalefactor", *optics)}
    return {name: torch.tensor(values, dtype=torch.float32) for name, values in (seen | ones).items()}


def weights_after(model: Model, take: step.Step, seen: dict[str, Tensor]) -> dict[str, Tensor]:
    for _ in range(3):
        take(seen, LR)
    return {name: values.clone() for name, values in model.state_dict().items()}


def _work(rank: int, folder: str, compress_gradients: bool) -> None:
    """Step over this rank's half of the batch, an image at a time."""
    step.POINTS_AT_ONCE["cpu"] = 1
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model, half = one_volume(), slice(rank * COUNT // 2, (rank + 1) * COUNT // 2)
    take = step.Step(model, TrainingConfig(), bf16=False, world_size=2, compress_gradients=compress_gradients)
    weights = weights_after(model, take, {name: values[half] for name, values in batch().items()})
    torch.save(weights, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(("compress_gradients", "least", "most"), [(False, 0.0, 1e-5), (True, 1e-6, 0.1 * LR)])
def test_two_processes_that_take_their_halves_image_by_image_step_as_one(
    tmp_path: Path, compress_gradients: bool, least: float, most: float
) -> None:
    """Nearly so, if they send gradients in bf16."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    spawn(_work, args=(str(tmp_path), compress_gradients), nprocs=2)
    model = one_volume()
    alone = weights_after(model, step.Step(model, TrainingConfig(), bf16=False), batch())
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    off = [float((first[name] - values).abs().mean()) for name, values in alone.items()]
    assert least <= max(off) < most, "of the weights"
    for name, values in first.items():
        torch.testing.assert_close(second[name], values, rtol=0, atol=0)


def test_the_loss_at_some_points_is_that_at_all_on_average() -> None:
    model, seen = one_volume(), batch()
    num_points = model.observer.num_points
    with torch.inference_mode():
        whole = float(model(seen).loss)
        samples = (Sample(torch.randperm(num_points)[: num_points // 5], num_points) for _ in range(400))
        drawn = [float(model(seen, sample).loss) for sample in samples]
    error = np.std(drawn) / np.sqrt(len(drawn))
    assert error > 0
    assert abs(np.mean(drawn) - whole) < 4 * error


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_a_step_does_the_share_of_the_work_that_is_asked_for(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    work = flops(TrainingConfig(points_share=share))
    monkeypatch.setattr(CoordinateDecoder, "misfit", Decoder.misfit)
    assert work == pytest.approx(share * flops(TrainingConfig()), rel=0.05), "autograd's, at all points"


def flops(training: TrainingConfig) -> int:
    take = step.Step(one_volume(), training, bf16=False)
    with FlopCounterMode(display=False) as counter:
        take(batch(), LR)
    return counter.get_total_flops()


def test_a_coarse_step_looks_at_no_point_beyond_its_radius() -> None:
    seen, radius = batch(), BOX // 4
    spectrum = torch.fft.fft2(seen["images"])
    k = torch.fft.fftfreq(BOX, 1 / BOX)
    spectrum[:, k[:, None] ** 2 + k[None, :] ** 2 > radius**2] = 0
    blurred = seen | {"images": torch.fft.ifft2(spectrum).real}
    losses = []
    for images in (seen, blurred):
        model = build_model(
            ModelConfig(model="homogeneous", dec_dim=16, window=False),
            box_size=BOX,
            data_sign=-1,
            hartley_std=4.0,
            ctf=False,
        )
        torch.manual_seed(1)
        model.load_state_dict({name: torch.full_like(values, 0.01) for name, values in model.state_dict().items()})
        take = step.Step(model, TrainingConfig(points_share=0.5), bf16=False)
        losses.append(float(take(images, LR, radius).loss))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def started(decoder: str) -> Model:
    """A network that starts from a linear subspace."""
    torch.manual_seed(0)
    settings = {
        "basis": ModelConfig(zdim=2, encoder="linear", decoder="basis", num_basis=2),
        "residual": ModelConfig(zdim=2, encoder="linear", decoder="residual", dec_dim=16),
    }
    model = build_model(settings[decoder], box_size=BOX, data_sign=-1, hartley_std=4.0, ctf=False)
    volumes = torch.randn(3, BOX, BOX, BOX, generator=torch.Generator().manual_seed(1))
    model.start_from(Subspace(volumes, torch.ones(BOX // 2 + 1), 0.01), BOX // 2)
    return model


@pytest.mark.parametrize(("decoder", "stays"), [("residual", True), ("basis", False)])
def test_early_steps_keep_the_latents_that_a_decoder_does_not_know_yet(decoder: str, stays: bool) -> None:
    model, seen = started(decoder), batch()
    before, weights = model.encode(seen)[0], {name: values.clone() for name, values in model.state_dict().items()}
    take = step.Step(model, TrainingConfig(), bf16=False)
    for _ in range(3):
        take(seen, LR, early=True)
    assert torch.equal(model.encode(seen)[0], before) == stays
    assert any(not torch.equal(weights[name], values) for name, values in model.state_dict().items()), "it learns"
    take(seen, LR)
    take(seen, LR)
    assert not torch.equal(model.encode(seen)[0], before)


def test_training_goes_on_from_an_early_checkpoint_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    seen, models = batch(), [started("residual") for _ in range(2)]
    steps = [step.Step(model, TrainingConfig(), bf16=False) for model in models]
    torch.manual_seed(2)
    steps[0](seen, LR, early=True)
    save_checkpoint(tmp_path, Position(), models[0], steps[0].optimizer, 1)
    load_state(tmp_path, models[1], steps[1].optimizer)
    for take in steps:
        torch.manual_seed(3)
        take(seen, LR)
    for ours, expected in zip(models[1].parameters(), models[0].parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_a_step_whose_gradient_is_no_number_changes_nothing() -> None:
    model = one_volume()
    take = step.Step(model, TrainingConfig(), bf16=False)
    before = weights_after(model, take, batch())
    moments = copy.deepcopy(take.optimizer.state_dict()["state"])
    assert take.is_sound
    spoiled = batch()
    spoiled["images"][3, 0, 0] = torch.inf
    take(spoiled, LR)
    assert not take.is_sound
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    for index, state in take.optimizer.state_dict()["state"].items():
        assert all(torch.equal(values, moments[index][name]) for name, values in state.items())
    take(batch(), LR)
    assert take.is_sound
    assert not all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
