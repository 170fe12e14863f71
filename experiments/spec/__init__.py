"""What is asked: specs as they are written, validated and named."""
