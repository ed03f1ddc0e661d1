"""Standard input, output and error: always open, and never a reason to stop work on a target.

A message that nobody can read is dropped. A result that cannot be written is an `OutputError`,
which the command line turns into an exit status of its own.
"""

import errno
import io
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_INPUT, _OUTPUT, _ERROR = 0, 1, 2


class OutputError(Exception):
    """Standard output cannot be written. It swallows what is written to it from now on."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(cause.strerror)
        self.has_no_reader = cause.errno == errno.EPIPE


def prepare_standard_streams() -> None:
    """Open what is closed, and let no failing output raise an `OSError`.

    Without this the next file opened, a target perhaps, would get the number of a closed
    standard error, and every message would be written into it.
    """
    _open_closed()
    # A standard input that is closed is open for writing only: reading it fails.
    if sys.stdin is None:
        sys.stdin = open(_INPUT, encoding="utf-8", closefd=False)  # noqa: SIM115 - lives as long as the process
    sys.stdout = _text_stream(io.BufferedWriter(_Output(_OUTPUT)), sys.stdout)
    sys.stderr = _text_stream(_Output(_ERROR, drops=True), sys.stderr)


def show(status: int, shown: Callable[[], None]) -> int:
    """Show a result, and return ``status``, or what a failing standard output makes of it.

    Work that is done stays done: only the status 0 changes.
    """
    try:
        shown()
        sys.stdout.flush()
    except OutputError as error:
        return output_failed(error, status)
    return status


def output_failed(error: OutputError, status: int) -> int:
    """The exit status of a command whose result cannot be written; a word about it, if needed.

    A reader that has gone wanted no more, and needs no message.
    """
    if error.has_no_reader:
        return status or 128 + signal.SIGPIPE
    click.echo(f"balenaflash: standard output: cannot be written: {error}", err=True)
    if not status:
        click.echo("  The work itself is done; only its result could not be printed.", err=True)
    return status or 1


def write_error(message: bytes) -> None:
    """Write to standard error at once, also from a signal handler; failing is no failure."""
    _Output(_ERROR, drops=True).write(message)


def _open_closed() -> None:
    for descriptor in (_INPUT, _OUTPUT, _ERROR):
        try:
            os.fstat(descriptor)
        except OSError:  # EBADF: it is closed, and open(2) gives the lowest number that is free
            # The wrong way round, so that using it fails as using a closed one does.
            opened = os.open(os.devnull, os.O_WRONLY if descriptor == _INPUT else os.O_RDONLY)
            os.set_inheritable(opened, True)


def _text_stream(binary: "io.RawIOBase | io.BufferedIOBase", old: object) -> io.TextIOWrapper:
    encoding = getattr(old, "encoding", None) or "utf-8"
    errors = getattr(old, "errors", None) or "backslashreplace"
    return io.TextIOWrapper(binary, encoding, errors, write_through=True)  # type: ignore[arg-type]  # a raw stream does


class _Output(io.RawIOBase):
    """A descriptor for writing. A failure is an `OutputError`, or with ``drops`` no failure."""

    def __init__(self, descriptor: int, *, drops: bool = False) -> None:
        self._descriptor = descriptor
        self._drops = drops
        self._is_broken = False

    def write(self, data: "ReadableBuffer", /) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and not self._is_broken:
                rest = rest[self._write_some(rest) :]
        except OSError as error:
            if not self._drops:
                self._is_broken = True
                raise OutputError(error) from error
        return size

    def _write_some(self, data: memoryview) -> int:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:
            # Another process that shares the pipe has made it non-blocking.
            poll = select.poll()
            poll.register(self._descriptor, select.POLLOUT)
            poll.poll()
            return 0

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)
