"""An ext2, ext3 or ext4 filesystem of an image, read without mounting it."""
