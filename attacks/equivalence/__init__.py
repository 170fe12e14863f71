"""Rewrites that leave the stolen model's function unchanged."""
