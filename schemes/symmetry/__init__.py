"""Rewrites of a network that leave its function unchanged: which there are, and how to undo them."""
