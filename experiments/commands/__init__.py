"""The commands of ``wmarena``, one module for each thing that a user does."""
