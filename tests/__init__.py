"""Tests: they mirror the packages; ``contracts`` holds the contract classes that plugins join."""
