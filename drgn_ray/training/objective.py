"""What trials of a sweep are ranked by: how much better than one volume they tell held-out images, nats an image.

It is the evidence lower bound with one noise spectrum for all trials, that of a linear subspace fitted once, less the
bound of that subspace's mean volume.  A trial's own loss weighs its KL divergence by its own beta and cannot be
compared; its held-out reconstruction error is of windowed images where there is a window, and falls with every further
dimension, which stores noise of the image it is compared with, and with every smaller beta.  The bound charges what a
latent stores at its price, the KL divergence in nats (Hinton and van Camp 1993), whatever beta and zdim were.  A
posterior that is narrower than images justify, as after training with a small beta, costs a trial something, and so
does an encoder that learnt few particles by heart: encoder and decoder are judged together.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from drgn_ray.config import RunConfig
from drgn_ray.models.linear import LinearSubspace
from drgn_ray.models.model import Model
from drgn_ray.particles.loader import stream_rows
from drgn_ray.particles.store import ParticleStore
from drgn_ray.training.compare import MOST_IMAGES, evidence_bounds, one_volume
from drgn_ray.training.loop import particle_order


def held_out_bounds(
    model: Model, noise_of: LinearSubspace, config: RunConfig, store: ParticleStore, radius: int | None = None
) -> Float64[np.ndarray, " n"]:
    """Evidence lower bound of each held-out image (of 2,000 at most), less that of noise alone; larger is better.

    It can be compared with others of the same particles, whatever `radius` they have.

    Parameters
    ----------
    noise_of
        The subspace whose noise is taken, on the model's device.
    config
        Says which images are held out.
    radius
        Largest |k| that the model was trained at so far: beyond it the one volume for all is taken; None: all.
    """
    chunks = particle_order(config, store).val_chunks()[: max(MOST_IMAGES // store.chunk_size, 1)]

    def bounds(of: Model, within: int | None) -> Float64[np.ndarray, " n"]:
        return evidence_bounds(of, noise_of, stream_rows(store, chunks, store.chunk_size), within)

    if radius is None:
        return bounds(model, None)
    consensus = one_volume(noise_of)
    return bounds(model, radius) + bounds(consensus, None) - bounds(consensus, radius)
