"""Run a plan: scheduling loop, ledger, retries, supervision, simulation."""
