"""Output formats of a report: HTML, Markdown, tables, terminal."""
