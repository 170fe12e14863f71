"""The report: HTML, Markdown, figures and tables from stored evidence alone."""
