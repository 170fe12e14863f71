"""Judging one suspect with one key, outside of any run."""
