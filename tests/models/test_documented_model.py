"""The decoder that `docs/models.md` shows is one: it trains, and its slices are those of its volumes."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import torch
from scipy.spatial.transform import Rotation

from drgn_ray.config import ModelConfig
from drgn_ray.models.decoder import Decoder
from drgn_ray.models.encoder import ResidualEncoder
from drgn_ray.models.vae import VAE
from drgn_ray.physics.observation import Observer

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
SIZE, COUNT = 32, 4


def test_the_decoder_of_the_document_trains_and_its_slices_are_of_its_volumes() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    namespace: dict = {}
    exec(compile(code, str(DOCUMENT), "exec"), namespace)
    torch.manual_seed(0)
    settings = ModelConfig(zdim=2, enc_dim=16, enc_layers=0)
    observe = partial(Observer, box_size=SIZE, data_sign=1, hartley_std=1.0, ctf=False)
    decoder = namespace["GaussianDecoder"].of(settings, box_size=SIZE, zdim=2)
    assert isinstance(decoder, Decoder)
    encoder = ResidualEncoder.of(settings, observe)
    model = VAE(observer=observe(window=False), encoder=encoder, decoder=decoder, zdim=2, beta=None)
    z = torch.randn(2)
    batch = {
        "images": model.decode_volume(z).sum(dim=0).expand(COUNT, SIZE, SIZE).clone(),  # along z: the unturned view
        "rotation": torch.eye(3).expand(COUNT, 3, 3),
        "translation": torch.zeros(COUNT, 2),
        "apix": torch.ones(COUNT),
    }
    seen = model.observer(batch).coefficients[0]
    slices = torch.complex(*model.decode_slices(z[None], torch.eye(3)[None]))[0].detach()
    assert (slices - seen).norm() < 0.02 * seen.norm()
    turned = batch | {"rotation": torch.tensor(Rotation.random(COUNT, rng=0).as_matrix(), dtype=torch.float32)}
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model(turned).loss.backward()
    optimizer.step()
    assert all((before[name] != parameter).any() for name, parameter in model.named_parameters())
