"""What goes into the boot partition: one edit, one file, pure functions over a volume."""
