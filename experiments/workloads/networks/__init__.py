"""Networks of the workloads, one family per module: an edit invalidates the results of that family alone."""
