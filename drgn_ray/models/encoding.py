"""Positional encodings, each a matrix of frequencies.

Every encoding of cryoDRGN is sin and cos of ``coordinate · frequency`` for a list of 3-D frequencies: the axis types
put them on x, y and z, the gaussian type draws them at random.  Rotating the few frequencies instead of the many
points is the same number.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def _gaussian(box_size: int, pe_dim: int, feat_sigma: float) -> Float[Tensor, "K 3"]:
    return torch.randn(3 * pe_dim, 3) * feat_sigma * (box_size // 2)


def _geometric(highest: Callable[[int], float], lowest: Callable[[int], float]) -> Callable[..., Tensor]:
    def frequencies(box_size: int, pe_dim: int, feat_sigma: float) -> Float[Tensor, "K 3"]:
        del feat_sigma  # of the gaussian type alone
        high, low = highest(box_size), lowest(box_size)
        scale = high * (low / high) ** (torch.arange(pe_dim) / (pe_dim - 1))
        return torch.kron(torch.eye(3), scale[:, None])

    return frequencies


ENCODINGS: dict[str, Callable[..., Tensor]] = {
    "gaussian": _gaussian,
    "geom_ft": _geometric(lambda size: math.pi * size, lambda size: 2 * math.pi),
    "geom_full": _geometric(lambda size: math.pi * size, lambda size: 1.0),
    "geom_lowf": _geometric(lambda size: size / 2, lambda size: 1.0),
    "geom_nohighf": _geometric(lambda size: size / 2, lambda size: 2 * math.pi),
}


def encoding_frequencies(pe_type: str, box_size: int, pe_dim: int, feat_sigma: float) -> Float[Tensor, "K 3"]:
    """Angular frequencies (rad per unit of k/D) of an encoding with 6 * `pe_dim` features, K = 3 * `pe_dim`.

    Parameters
    ----------
    pe_type
        A key of `ENCODINGS` (cryoDRGN's names; section 2.6 of the method notes).
    box_size
        D, px.
    pe_dim
        Frequencies an axis.
    feat_sigma
        Standard deviation of the gaussian type, in units of D/2.
    """
    return ENCODINGS[pe_type](box_size, pe_dim, feat_sigma)
