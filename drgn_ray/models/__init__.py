"""Models, and the registry from which configuration and sweeps choose them."""

from __future__ import annotations

from functools import partial

from drgn_ray.config import ModelConfig
from drgn_ray.models.basis import BasisDecoder
from drgn_ray.models.curved import CurvedSubspace
from drgn_ray.models.decoder import CoordinateDecoder, Decoder
from drgn_ray.models.encoder import Encoder, PosteriorEncoder, ResidualEncoder
from drgn_ray.models.homogeneous import Homogeneous
from drgn_ray.models.linear import LinearSubspace
from drgn_ray.models.model import Model
from drgn_ray.models.residual import ResidualDecoder
from drgn_ray.models.vae import VAE
from drgn_ray.physics.observation import Observe, Observer

DECODERS: dict[str, type[Decoder]] = {
    "coordinate": CoordinateDecoder,
    "residual": ResidualDecoder,
    "basis": BasisDecoder,
}
ENCODERS: dict[str, type[Encoder]] = {"residual": ResidualEncoder, "linear": PosteriorEncoder}


def build_model(
    model: ModelConfig, *, box_size: int, data_sign: int, hartley_std: float, ctf: bool, damping: bool = False
) -> Model:
    """Build the model for images of a store; weights are drawn from torch's global generator.

    Parameters
    ----------
    box_size, data_sign, hartley_std, ctf, damping
        What the images are, see `drgn_ray.physics.observation.Observer`.
    """
    images = {"box_size": box_size, "data_sign": data_sign, "hartley_std": hartley_std, "ctf": ctf, "damping": damping}
    return MODELS[model.model](model, partial(Observer, **images))


def _looking(observe: Observe, model: ModelConfig) -> Observe:
    """Look at what is left of downsampled images."""
    return partial(observe, radius=None if model.downsample is None else model.downsample // 2)


def _vae(model: ModelConfig, observe: Observe) -> Model:
    observe = _looking(observe, model)
    encoder = ENCODERS[model.encoder].of(model, observe)
    observer = observe(window=model.window and encoder.takes_window)
    decoder = DECODERS[model.decoder].of(model, box_size=observer.box_size, zdim=model.zdim)
    return VAE(observer=observer, encoder=encoder, decoder=decoder, zdim=model.zdim, beta=model.beta)


def _homogeneous(model: ModelConfig, observe: Observe) -> Model:
    observer = _looking(observe, model)(window=model.window)
    decoder = DECODERS[model.decoder].of(model, box_size=observer.box_size, zdim=0)
    return Homogeneous(observer=observer, decoder=decoder)


def _subspace(kind: type[LinearSubspace], model: ModelConfig, observe: Observe) -> Model:
    del model  # its zdim is the most that a fit may find
    # A window would spread each coefficient's noise over its neighbours, which EM takes as independent.
    return kind(observe=partial(observe, window=False))


MODELS = {
    "vae": _vae,
    "homogeneous": _homogeneous,
    "linear": partial(_subspace, LinearSubspace),
    "curved": partial(_subspace, CurvedSubspace),
}
