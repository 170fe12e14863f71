"""The sections of a report, as values."""
