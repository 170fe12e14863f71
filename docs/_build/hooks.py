"""MkDocs hook: adds the generated pages to the site."""

import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

TREE = Path(__file__).resolve().parents[2]
if str(TREE) not in sys.path:
    sys.path.insert(0, str(TREE))

from docs._build.pages import generated_pages, outward_links  # noqa: E402  the tree is importable from here on


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add every generated page."""
    for path, text in generated_pages(TREE).items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files of the repository that are no pages name the file instead."""
    return outward_links(markdown, page.file.src_uri)
