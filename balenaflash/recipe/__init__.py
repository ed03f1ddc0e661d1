"""Recipes: the edits that a lab makes again and again, kept in a file beside its images."""
