"""The disks of this machine, and files as targets."""
