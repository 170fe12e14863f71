"""Attacks that embed a second mark."""
