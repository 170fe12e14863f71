"""Networks of the workloads, one family a module, so that editing one leaves the others' results valid."""
