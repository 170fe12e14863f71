"""The system of record, on SQLite or PostgreSQL."""
