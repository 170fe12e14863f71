"""All generated pages, by their path in the site."""

import json
import posixpath
import re
from pathlib import Path

from docs._build import catalogue, commands, results, specification


def generated_pages(tree: Path) -> dict[str, str]:
    """Path in the site -> Markdown."""
    return {
        **{f"catalogue/{kind}s.md": catalogue.page(kind) for kind in ("scheme", "attack", "workload")},
        "reference/spec.md": specification.page(),
        "reference/commands.md": commands.page(),
        "reference/results.md": results.page(),
        "tour.md": notebook_page(tree / "docs" / "tour.ipynb"),
    }


def notebook_page(path: Path) -> str:
    """A notebook's text and code, without outputs."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    parts = [
        f"```python\n{text}\n```" if cell["cell_type"] == "code" else text
        for cell, text in zip(cells, texts, strict=True)
    ]
    return "\n\n".join(parts) + "\n"


def outward_links(markdown: str, page: str) -> str:
    """Links of a page (path in the site) to files outside of the site, as the name of the file in the repository."""

    def replaced(link: re.Match[str]) -> str:
        text, target = link.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
        if not path.startswith("../"):
            return link[0]
        name = path.removeprefix("../")
        return f"`{name}`" if text == name else f"{text} (`{name}` in the repository)"

    return re.sub(r"\[([^\]]+)\]\((\.\./[^)#]+)\)", replaced, markdown)
