"""Errors of stores on disk or behind a URL."""


class StoreError(OSError):
    """The store cannot be used (not writable, no folder, full); the message says why and what to do."""


class StoreBusy(StoreError):
    """Another run holds the store's lock."""
