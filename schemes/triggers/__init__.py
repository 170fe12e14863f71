"""Shared parts of trigger schemes: images, labels, forging, training."""
