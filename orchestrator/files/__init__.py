"""Atomic file writes, file locks, and addresses of trackers."""
