"""Sections of a report, as plain values."""
