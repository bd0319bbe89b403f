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
# And that train in a minute, on a quick machine too: longer than a server's start, or than it takes to kill something.
SLOWER_BASE = """
base:
  model.enc_dim: 32
  model.enc_layers: 1
  model.dec_dim: 128
  model.dec_layers: 2
"""
