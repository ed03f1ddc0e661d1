"""Changes of the boot partition: data with a method ``apply(volume)``."""
