"""Recipes: the edits that a lab repeats, kept in a file beside its images."""
