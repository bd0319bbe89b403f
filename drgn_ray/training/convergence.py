"""What every epoch still changes: latents of held-out particles, and the volumes at some of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from drgn_ray.models.model import Model
from drgn_ray.physics.fsc import HALF, resolution

NUM_VOLUMES = 8
# Three central slices stand for a volume, at the cost of three images.
VIEWS = torch.tensor(
    [
        [[1.0, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0, 1, 0], [0, 0, 1], [1, 0, 0]],
        [[0, 0, 1], [1, 0, 0], [0, 1, 0]],
    ]
)


class _State(NamedTuple):
    z: Float[Tensor, "n Z"]
    slices: Float[Tensor, "volumes views P 2"]


class Convergence:
    """Compares every epoch with the one before it; the first after an interruption with nothing.

    Parameters
    ----------
    apix
        Å/px.
    """

    def __init__(self, apix: float) -> None:
        self.apix = apix
        self._last: _State | None = None

    @torch.inference_mode()
    def since_last(self, model: Model, z: Float[Tensor, "n Z"]) -> dict[str, float]:
        """Compare with the last call.

        Parameters
        ----------
        z
            Means of the same particles, in the same order, every time.

        Returns
        -------
        ``convergence/latent_change``: how far latents moved, over their spread, both root mean squares;
        ``convergence/volume_change``: norm of the difference of the volumes over theirs, both of three central slices;
        ``convergence/volume_resolution``: Å at which the FSC of these slices falls below 0.5.
        """
        last, self._last = self._last, _State(z, _slices(model, z))
        if last is None:
            return {}
        before, now = last.slices, self._last.slices
        shell = model.observer.half_disc.radius.round().long()
        products = torch.stack([before * now, before**2, now**2]).sum(dim=(1, 2, 4)).double()
        shared, power, its_power = torch.zeros(3, int(shell.max()) + 1, dtype=torch.float64, device=z.device).index_add(
            1, shell, products
        )
        curve = (shared / (power * its_power).sqrt().clamp_min(1e-30)).cpu().numpy()
        curve[0] = 1.0  # the plane has no DC
        found = {
            "convergence/volume_change": float((before - now).norm() / before.norm().clamp_min(1e-30)),
            "convergence/volume_resolution": resolution(curve, model.observer.box_size, self.apix, HALF),
        }
        if model.zdim:
            moved, spread = (z - last.z).square().sum(dim=1).mean(), (z - z.mean(dim=0)).square().sum(dim=1).mean()
            found["convergence/latent_change"] = float((moved / spread.clamp_min(1e-30)).sqrt())
        return found


def _slices(model: Model, z: Float[Tensor, "n Z"]) -> Float[Tensor, "volumes views P 2"]:
    chosen = torch.linspace(0, len(z) - 1, min(NUM_VOLUMES if model.zdim else 1, len(z))).long()
    views = VIEWS.to(z.device)
    found = [torch.stack(model.decode_slices(each.expand(len(views), -1), views), dim=-1) for each in z[chosen]]
    return torch.stack(found)
