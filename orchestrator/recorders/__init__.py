"""Where results are mirrored for people: memory, MLflow."""
