"""Attacks that claim a model with a key that was never embedded."""
