"""The charts of a report, on the page and as files."""
