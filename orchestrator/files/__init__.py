"""Files on disk: atomic writes, locks, addresses."""
