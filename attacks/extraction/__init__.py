"""Attacks that query the stolen model."""
