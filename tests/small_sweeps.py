"""Networks of sweeps that train in seconds."""

BASE = """
base:
  model.enc_dim: 16
  model.enc_layers: 1
  model.dec_dim: 16
  model.dec_layers: 1
  model.pe_dim: 4
  training.precision: fp32
"""
