"""A FAT volume: read, checked, repaired, and edited in memory."""
