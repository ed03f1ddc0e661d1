"""A FAT volume in memory: read, checked, changed, and what changed of it."""
