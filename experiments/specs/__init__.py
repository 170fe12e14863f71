"""Shipped specs."""
