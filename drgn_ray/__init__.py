"""drgn_ray: heterogeneous cryo-EM reconstruction with a variational autoencoder, on Ray.

Imports run one way: ``errors, units, config <- physics, particles <- models <- training, analysis
<- tracking <- distributed <- conversions, jobs``.  Only ``distributed`` imports ray, only ``tracking`` imports mlflow.
"""

__version__ = "0.1.0"
