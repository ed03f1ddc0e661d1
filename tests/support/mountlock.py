"""Keep apart the tests that copy all mounts of the machine and those that such a copy disturbs.

A mount namespace of its own has a copy of every mount there is. What another test mounted on its
device stays in use there when that test has unmounted it.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK = Path(tempfile.gettempdir(), f"balenaflash-tests-{os.geteuid()}.mounts")


@contextmanager
def no_copies_of_mounts() -> Iterator[None]:
    """Within the block nobody copies mounts; any number of tests may be in it."""
    with _LOCK.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


@contextmanager
def no_mounts_of_others() -> Iterator[None]:
    """Within the block nobody minds that all mounts are copied; for one test at a time."""
    with _LOCK.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
