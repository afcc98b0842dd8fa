"""Loggers beside metrics.csv, one a file; none is loaded before it is used."""
