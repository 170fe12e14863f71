"""Example plugins; WMArena finds them through the entry points in ``pyproject.toml``."""
