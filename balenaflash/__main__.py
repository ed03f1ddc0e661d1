"""The start of the ``balenaflash`` command, and of ``python -m balenaflash``."""

import signal

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def start() -> None:
    """Run the command; a signal that comes while it is loaded waits until it can be answered."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    from balenaflash.cli.main import entry  # noqa: PLC0415 - loading it takes a tenth of a second

    entry()


if __name__ == "__main__":
    start()
