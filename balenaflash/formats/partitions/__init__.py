"""Partition tables: read, and refused if they are ambiguous."""
