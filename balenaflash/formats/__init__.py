"""Formats that lie on a disk, read with every number doubted."""
