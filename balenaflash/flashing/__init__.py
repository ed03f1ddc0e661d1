"""The bytes of an image onto targets, and the proof that they arrived."""
