"""The meaning of an image for balenaOS."""
