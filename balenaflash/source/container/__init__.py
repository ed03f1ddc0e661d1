"""Compressed images: recognised by content, decoded and checked."""
