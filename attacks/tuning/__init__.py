"""Attacks that continue training the stolen model."""
