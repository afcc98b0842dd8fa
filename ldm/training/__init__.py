"""LightningModules that train the autoencoder and the base diffusion model."""
