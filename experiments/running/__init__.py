"""Running a spec: store, journal, workers, records and report of one run."""
