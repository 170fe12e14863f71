"""Serial numbers in inputs: how they are drawn, printed, and searched for."""
