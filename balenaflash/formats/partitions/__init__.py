"""Partition tables: read, and refused where they can be read in two ways."""
