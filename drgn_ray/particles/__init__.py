"""The particle store: one self-describing Zarr group of images, poses, CTF and the origin of every row."""
