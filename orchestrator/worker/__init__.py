"""What one task does on one device."""
