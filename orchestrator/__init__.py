"""How work runs: identity, plan, store, journal, loop, executors, recorders."""
