"""``python -m balenaflash``."""

from balenaflash.cli.main import entry

if __name__ == "__main__":
    entry()
