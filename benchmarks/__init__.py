"""Measurements: each script prints a side-by-side table from one run."""
