"""Writing files whole, and locks on files: what everything else on disk is built from."""
