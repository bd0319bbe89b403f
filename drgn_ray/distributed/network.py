"""How training workers reach each other: at the addresses at which Ray knows their machines."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


@dataclass
class NetworkConfig(TorchConfig):
    """Ray Train's settings of torch's process group, whose CPU workers listen where Ray does.

    Gloo listens where the machine's name leads to, which on Debian and Ubuntu is loopback, and then workers of
    several machines wait for each other in vain.
    """

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """See `TorchConfig`."""
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """See `ray.train.backend.Backend`."""
        worker_group.execute(_listen_where_ray_does)
        super().on_start(worker_group, backend_config)


def _listen_where_ray_does() -> None:
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def interface_of(address: str) -> str | None:
    """Name of this machine's network interface that has an address; None where none has, as behind a translation."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses if each.family in (socket.AF_INET, socket.AF_INET6)):
            return name
    return None
