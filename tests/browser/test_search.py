"""The site's search, opened from a folder: no server, no network."""

import re
import subprocess
import sys
from pathlib import Path

from tests.browser.chromium import browser, page_text

TREE = Path(__file__).resolve().parents[2]


def test_search_works_from_a_folder(tmp_path: Path) -> None:
    """A word that stands on the page of statistics is found there."""
    browser()
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    subprocess.run(command, cwd=TREE, check=True, capture_output=True, timeout=300)
    page = page_text(f"{(site / 'index.html').as_uri()}?q=censored", tmp_path / "profile")
    found = re.findall(r'<a[^>]+href="([^"]+)"[^>]+class="md-search-result__link"', page)

    assert any("statistics.html" in address for address in found), found
