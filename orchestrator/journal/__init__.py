"""The journal of runs and tasks, on SQLite or PostgreSQL."""
