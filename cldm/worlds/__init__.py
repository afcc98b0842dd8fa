"""Worlds: sources of pictures with exact truth."""
