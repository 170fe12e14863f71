"""Keys of owners and adversaries: how they are derived, stored and encrypted."""
