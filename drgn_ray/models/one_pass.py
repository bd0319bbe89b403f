"""Squared error of a coordinate network and its gradients in one pass, a tile of points after the other, on a CPU.

Autograd keeps every layer's activations of all points until the backward pass, and on a CPU reading them back costs as
much as the arithmetic.  Here a tile goes forward, meets the data and goes backward while its activations are in the
cache; gradients of the weights are summed over tiles in float32.  The numbers are those of the layers of
`drgn_ray.models.mlp` one after the other, which a test compares.

Shape letters: B images, P points of a half-disc, K frequencies of the encoding, W width.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from drgn_ray.models.mlp import ResidualMLP

TILE = 2048  # points, of which a layer of 128 float32 is a MiB


def squared_error(
    mlp: ResidualMLP,
    bias: Float[Tensor, "B W"],
    freq: Float[Tensor, "P 2"],
    frequencies: Float[Tensor, "B 2 K"],
    sign: Float[Tensor, "B P"],
    scale: Float[Tensor, "B P"],
    target: Complex[Tensor, "B P"],
) -> Float[Tensor, ""]:
    """Sum of ``|scale * F - target|²``, F being the network at central slices; gradients go to `mlp` and `bias`.

    Parameters
    ----------
    bias
        What the first layer adds for each image: its bias and the latent's share.
    freq
        Points of the slices, cycles/px.
    frequencies
        Of the encoding, turned into each slice's plane.
    sign
        -1 where a point is evaluated at its mirror image and conjugated.
    """
    weight = mlp.first.weight[:, : 2 * frequencies.shape[-1]]
    layers = [each for linear in mlp.residual for each in (linear.weight, linear.bias)]
    last = mlp.last.weight, mlp.last.bias
    return _OnePass.apply(freq, frequencies, sign, scale, target, bias, weight, *last, *layers)  # type: ignore[no-any-return]


class _OnePass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        freq: Tensor,
        frequencies: Tensor,
        sign: Tensor,
        scale: Tensor,
        target: Tensor,
        bias: Tensor,
        first: Tensor,
        last: Tensor,
        last_bias: Tensor,
        *layers: Tensor,
    ) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        with torch.autocast("cpu", enabled=False):
            tiles = _Tiles(dtype, first, last, last_bias, layers)
            total = torch.zeros((), dtype=torch.float64)
            for image in range(len(bias)):
                for start in range(0, len(freq), TILE):
                    rows = slice(start, start + TILE)
                    seen = scale[image, rows], target[image, rows]
                    total += tiles.add(freq[rows], frequencies[image], sign[image, rows], *seen, bias[image])
                tiles.end_image()
        ctx.gradients = tiles.gradients()
        return total.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return (*[None] * 5, *(each * grad for each in ctx.gradients))


class _Tiles:
    """Weights, buffers of one tile, and the gradients so far."""

    def __init__(self, dtype: torch.dtype, first: Tensor, last: Tensor, last_bias: Tensor, layers: tuple[Tensor, ...]):
        self.first, self.last, self.last_bias = first.to(dtype), last.to(dtype), last_bias.to(dtype)
        self.weights, self.biases = ([each.to(dtype) for each in layers[offset::2]] for offset in (0, 1))
        width, features = first.shape
        self.angle = torch.empty(TILE, features // 2)
        self.features = torch.empty(TILE, features, dtype=dtype)
        self.hidden = [torch.empty(TILE, width, dtype=dtype) for _ in range(len(self.weights) + 1)]
        self.back = [torch.empty(TILE, width, dtype=dtype) for _ in range(2)]
        self.of_first = torch.zeros_like(first)
        self.of_last, self.of_last_bias = torch.zeros_like(last), torch.zeros_like(last_bias)
        self.of_layers = [torch.zeros_like(each) for each in layers]
        self.of_bias, self.of_biases = torch.zeros(width), list[Tensor]()

    def add(
        self, freq: Tensor, frequencies: Tensor, sign: Tensor, scale: Tensor, target: Tensor, bias: Tensor
    ) -> Tensor:
        """Take in a tile; its squared error."""
        count = len(freq)
        hidden = [each[:count] for each in self.hidden]
        features = self._encode(freq, frequencies, sign)
        nn.functional.relu_(torch.addmm(bias.to(features.dtype), features, self.first.T, out=hidden[0]))
        for layer, (weight, its_bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            torch.addmm(its_bias, hidden[layer], weight.T, out=hidden[layer + 1])
            nn.functional.relu_(hidden[layer + 1].add_(hidden[layer]))
        parts = torch.addmm(self.last_bias, hidden[-1], self.last.T).float()
        scale = torch.stack([scale, scale * sign], dim=1)  # of the imaginary part, which a mirrored point has with -1
        difference = parts * scale - torch.view_as_real(target)
        self._step_back(features, hidden, (2 * difference * scale).to(features.dtype))
        return difference.square().sum()

    def _encode(self, freq: Tensor, frequencies: Tensor, sign: Tensor) -> Tensor:
        half = self.angle.shape[1]
        angle, features = self.angle[: len(freq)], self.features[: len(freq)]
        torch.mm(freq, frequencies, out=angle)
        torch.sin(angle, out=features[:, :half]).mul_(sign[:, None])
        torch.cos(angle, out=features[:, half:])
        return features

    def _step_back(self, features: Tensor, hidden: list[Tensor], of_parts: Tensor) -> None:
        _add_product(self.of_last, of_parts.T, hidden[-1])
        self.of_last_bias += of_parts.sum(0, dtype=torch.float32)
        here, there = (each[: len(features)] for each in self.back)
        torch.mm(of_parts, self.last, out=here)
        for layer in reversed(range(len(self.weights))):
            _relu_backward(here, hidden[layer + 1])
            _add_product(self.of_layers[2 * layer], here.T, hidden[layer])
            self.of_layers[2 * layer + 1] += here.sum(0, dtype=torch.float32)
            torch.addmm(here, here, self.weights[layer], out=there)
            here, there = there, here
        _relu_backward(here, hidden[0])
        _add_product(self.of_first, here.T, features)
        self.of_bias += here.sum(0, dtype=torch.float32)

    def end_image(self) -> None:
        """Keep what is the image's own."""
        self.of_biases.append(self.of_bias)
        self.of_bias = torch.zeros_like(self.of_bias)

    def gradients(self) -> tuple[Tensor, ...]:
        """Gradients in the order of `_OnePass.forward`."""
        return torch.stack(self.of_biases), self.of_first, self.of_last, self.of_last_bias, *self.of_layers


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == total.dtype:
        torch.addmm(total, left, right, out=total)  # what torch's FLOP counter knows, unlike addmm_
    else:
        total += left @ right


def _relu_backward(grad: Tensor, output: Tensor) -> None:
    torch.ops.aten.threshold_backward.grad_input(grad, output, 0, grad_input=grad)
