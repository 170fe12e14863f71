"""Plugins of our own; WMArena finds them through the entry points in ``pyproject.toml``."""
