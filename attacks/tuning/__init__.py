"""Attacks that train the stolen model on."""
