"""Rewrites of a network that leave its function unchanged: finding, applying and undoing them."""
