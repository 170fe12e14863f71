"""Fenced blocks of Markdown documents, and the commands in them."""

import re


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks in one language ('' for plain ones)."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def commands(text: str, program: str) -> list[str]:
    """Lines of plain blocks that call ``program``, without comments and redirections."""
    lines = [line for block in blocks(text, "") for line in block.splitlines()]
    return [re.split(r"\s+#|\s>\s", line)[0].strip() for line in lines if line.startswith(program + " ")]
