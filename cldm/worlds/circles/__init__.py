"""The toy set of ControlNet's tutorial (fill50k) as a world: where a circle lies and what colours it has is exact."""
