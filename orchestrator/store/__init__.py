"""Stores of artifacts, checkpoints and reports, in a folder or behind a URL."""
