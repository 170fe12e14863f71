"""Charts of a report, on the page and as files."""
