"""How a plan is driven to its end."""
