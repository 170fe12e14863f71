"""Errors of stores on disk or behind a URL."""


class StoreError(OSError):
    """The store cannot be used (not writable, no folder, full); the message says why and what to do."""


class StoreBusy(StoreError):
    """Another run holds the store's lock."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
