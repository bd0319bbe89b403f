"""The residual multilayer perceptron of cryoDRGN's encoder and decoder."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ResidualMLP(nn.Module):
    """Linear + ReLU, `num_layers` times ``relu(x + linear(x))``, Linear."""

    def __init__(self, in_features: int, num_layers: int, width: int, out_features: int) -> None:
        super().__init__()
        self.first = nn.Linear(in_features, width)
        self.residual = nn.ModuleList(nn.Linear(width, width) for _ in range(num_layers))
        self.last = nn.Linear(width, out_features)

    def forward(self, x: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch O"]:
        """Map features to outputs."""
        return self.after_first(self.first(x))

    def after_first(self, hidden: Float[Tensor, "*batch W"]) -> Float[Tensor, "*batch O"]:
        """Finish from the first layer's sums, before its ReLU."""
        hidden = torch.relu(hidden)
        for linear in self.residual:
            hidden = torch.relu(hidden + linear(hidden))
        return self.last(hidden)
