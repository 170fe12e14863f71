"""Errors of everything that is kept on disk or behind a URL."""


class StoreError(OSError):
    """The store cannot be used (not writable, no folder, full); the message says why and the way out."""


class StoreBusy(StoreError):
    """Another run holds the store."""
