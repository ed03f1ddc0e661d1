"""What balenaOS means by what is on a disk."""
