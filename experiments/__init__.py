"""Which question is asked: specs, planning, runs, studies, results, report, command line, workloads."""
