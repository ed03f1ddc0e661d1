"""Inspect, edit, write and verify balenaOS images.

The commands, their options, their JSON and their exit statuses are the interface
(see ``balenaflash --help``); the Python names are not.
"""

__version__ = "0.1.0"
