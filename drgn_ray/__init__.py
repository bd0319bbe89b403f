"""drgn_ray: heterogeneous cryo-EM reconstruction with a variational autoencoder, on Ray.

Imports run one way: ``errors, units, config <- physics, particles <- models <- training, analysis
<- tracking <- distributed <- conversions, jobs``.  Only ``distributed`` imports ray, only ``tracking`` imports mlflow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drgn_ray.analysis.run import load_run

__all__ = ["load_run"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what is asked for here when it is: `drgn-ray --help` waits for none of it."""
    if name == "load_run":
        from drgn_ray.analysis.run import load_run

        return load_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
