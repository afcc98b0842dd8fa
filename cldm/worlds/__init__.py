"""Worlds: sources of pictures whose truth is known exactly."""
