"""The tensors of cryoDRGN's variational autoencoder and of ours: the one table of names, and both ways through it.

The networks are the same; what differs is the names, the order of the features of the axis encodings, square first and
last layers (residual in cryoDRGN) and the unit of the images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from drgn_ray.config import ModelConfig
from drgn_ray.models.vae import VAE
from drgn_ray.physics.lattice import half_disc

_FREQUENCIES, _RAND_FREQS = "decoder.frequencies", "decoder.rand_freqs"


@dataclass(frozen=True)
class _Layer:
    """A linear layer under our name and theirs.

    Attributes
    ----------
    ours, theirs
        Prefixes of weight and bias.
    num_inputs, num_outputs
        Columns and rows of the weight.
    is_residual
        They add the layer's input to its output where we do not.
    column_order
        Which column of theirs each of ours is.
    """

    ours: str
    theirs: str
    num_inputs: int
    num_outputs: int
    is_residual: bool
    column_order: Int[Tensor, " I"]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            f"{self.theirs}.weight": (self.num_outputs, self.num_inputs),
            f"{self.theirs}.bias": (self.num_outputs,),
        }

    def weight_to_ours(self, weight: Float[Tensor, "O I"]) -> Float[Tensor, "O I"]:
        return (weight + self._identity)[:, self.column_order]

    def weight_to_theirs(self, weight: Float[Tensor, "O I"]) -> Float[Tensor, "O I"]:
        return self.columns_to_theirs(weight) - self._identity

    def columns_to_theirs(self, values: Float[Tensor, "O I"]) -> Float[Tensor, "O I"]:
        return values[:, self.column_order.argsort()]

    @property
    def _identity(self) -> Tensor:
        return torch.eye(self.num_inputs) if self.is_residual else torch.zeros(())


def _layers(model: ModelConfig, box_size: int) -> tuple[list[_Layer], list[_Layer]]:
    """List the layers of encoder and decoder: the one table of names."""
    num_points = 2 * half_disc(box_size).num_points
    frequencies = box_size // 2 if model.pe_dim is None else model.pe_dim
    features = torch.arange(6 * frequencies)
    if model.pe_type != "gaussian":  # theirs: sin and cos of x, of y, of z; ours: sin of all, cos of all
        features = features.reshape(3, 2, frequencies).transpose(0, 1).flatten()
    columns = torch.cat([features, torch.arange(6 * frequencies, 6 * frequencies + model.zdim)])
    encoder = [num_points, *[model.enc_dim] * (model.enc_layers + 1), 2 * model.zdim]
    decoder = [len(columns), *[model.dec_dim] * (model.dec_layers + 1), 2]
    return (
        list(_mlp("encoder.mlp", "encoder.main", encoder, torch.arange(num_points))),
        list(_mlp("decoder.mlp", "decoder.decoder.main", decoder, columns)),
    )


def _mlp(ours: str, theirs: str, widths: list[int], columns: Int[Tensor, " I"]) -> Iterator[_Layer]:
    last = len(widths) - 2
    for index, (num_inputs, num_outputs) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        is_end = index in (0, last)
        name = {0: "first", last: "last"}.get(index, f"residual.{index - 1}")
        is_square = num_inputs == num_outputs
        yield _Layer(
            f"{ours}.{name}",
            f"{theirs}.{2 * index}.linear" if is_square else f"{theirs}.{2 * index}",  # between them lie the ReLUs
            num_inputs,
            num_outputs,
            is_square and is_end,
            columns if index == 0 else torch.arange(num_inputs),
        )


def shapes(model: ModelConfig, box_size: int) -> dict[str, tuple[int, ...]]:
    """Their tensors in the order of their ``model.parameters()``."""
    encoder, decoder = _layers(model, box_size)
    shapes = {name: shape for layer in encoder for name, shape in layer.shapes.items()}
    if model.pe_type == "gaussian":
        shapes[_RAND_FREQS] = ((decoder[0].num_inputs - model.zdim) // 2, 3)
    return shapes | {name: shape for layer in decoder for name, shape in layer.shapes.items()}


def weights_to_ours(theirs: Mapping[str, Tensor], model: ModelConfig, box_size: int, unit: float) -> dict[str, Tensor]:
    """Rename, reorder and rescale; `unit` is the value of their images over ours."""
    encoder, decoder = _layers(model, box_size)
    ours = {}
    for layer in (*encoder, *decoder):
        ours[f"{layer.ours}.weight"] = layer.weight_to_ours(theirs[f"{layer.theirs}.weight"])
        ours[f"{layer.ours}.bias"] = theirs[f"{layer.theirs}.bias"]
    ours[f"{encoder[0].ours}.weight"] *= unit  # the encoder reads our unit,
    for kind in ("weight", "bias"):  # and the decoder answers in it
        ours[f"{decoder[-1].ours}.{kind}"] = ours[f"{decoder[-1].ours}.{kind}"] / unit
    if model.pe_type == "gaussian":
        ours[_FREQUENCIES] = theirs[_RAND_FREQS] * (box_size // 2)
    return ours


def weights_to_theirs(network: VAE, model: ModelConfig, box_size: int) -> dict[str, Tensor]:
    """Rename and reorder; images keep their unit, which is `norm` in their settings."""
    encoder, decoder = _layers(model, box_size)
    ours, theirs = network.state_dict(), {}
    for layer in (*encoder, *decoder):
        theirs[f"{layer.theirs}.weight"] = layer.weight_to_theirs(ours[f"{layer.ours}.weight"]).contiguous()
        theirs[f"{layer.theirs}.bias"] = ours[f"{layer.ours}.bias"]
    if model.pe_type == "gaussian":
        theirs[_RAND_FREQS] = ours[_FREQUENCIES] / (box_size // 2)
    return {name: theirs[name] for name in shapes(model, box_size)}


def moments_to_theirs(
    network: VAE, optimizer: torch.optim.Optimizer, model: ModelConfig, box_size: int
) -> dict[str, Any]:
    """State of their Adam, which counts the random frequencies among its parameters though it never moves them."""
    encoder, decoder = _layers(model, box_size)
    names, parameters = list(shapes(model, box_size)), dict(network.named_parameters())
    state = {}
    for layer in (*encoder, *decoder):
        for kind in ("weight", "bias"):
            moments = optimizer.state.get(parameters[f"{layer.ours}.{kind}"], {})
            if moments:
                state[names.index(f"{layer.theirs}.{kind}")] = {
                    name: layer.columns_to_theirs(value).contiguous() if value.ndim == 2 else value
                    for name, value in moments.items()
                }
    group = optimizer.state_dict()["param_groups"][0] | {"params": list(range(len(names)))}
    return {"state": dict(sorted(state.items())), "param_groups": [group]}
