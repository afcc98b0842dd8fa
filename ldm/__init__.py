"""Latent diffusion from scratch. Model files need torch, einops and numpy only.

One letter per thing: x image in [-1, 1], z latents, eps noise, t timestep, context text embedding.
"""
