"""Studies: which fields to search, what to optimise, how trials become plans, what is reported."""
