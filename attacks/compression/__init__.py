"""Attacks that make the stolen model smaller: pruning, quantisation."""
