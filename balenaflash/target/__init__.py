"""What may be written to."""
