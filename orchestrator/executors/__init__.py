"""Executors: run tasks in this process, on Ray workers, or in virtual time."""
