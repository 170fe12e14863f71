"""Serial numbers in inputs: drawing, printing, searching."""
