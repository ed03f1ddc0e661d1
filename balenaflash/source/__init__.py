"""The bytes of an image, wherever and however they are kept."""
