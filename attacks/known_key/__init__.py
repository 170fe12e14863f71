"""Attacks that hold the owner's key."""
