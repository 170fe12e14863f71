"""Recorders mirror results from the journal: into memory or MLflow."""
