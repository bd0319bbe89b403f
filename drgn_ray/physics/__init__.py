"""Image formation in Fourier space: pure torch, no input or output, no configuration.

Shape letters: B images, D box size (px), P points of the half-disc, N points of a list.
"""
