"""Measures of generated images. Nothing here knows the Lightning module."""
