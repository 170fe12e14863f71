"""Which question is asked: specs, their expansion, the command line, workloads, the report."""
