"""Changing an image in place so that it is, at any moment, wholly old or wholly new."""
