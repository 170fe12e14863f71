"""Computes one task on one device."""
