"""Deep Serial Number: a network that works only on inputs stamped with its buyer's number."""
