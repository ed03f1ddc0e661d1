"""A block device that fails as it is told to: wrong answers, errors, slowness, disappearance.

``/dev/loopN`` stands on one file, and that file is a FUSE filesystem of our own, mounted over a
regular file and served by a process of its own from a backing file in memory. Everything the
kernel does with a real disk (O_DIRECT, O_EXCL, page cache, flush, errors of write-back) happens
here too. What each fault looks like to a writer is the kernel's affair: a write error comes back
from ``pwrite`` with O_DIRECT and only from ``fsync`` without, a dropped write never shows.

==============  ==================================================================
behaviour.py    what can be asked for, and what is counted
medium.py       the bytes, and the faults applied to them
protocol.py     the messages of /dev/fuse
server.py       the process that mounts the file and answers the kernel
device.py       the loop device in front, as a test uses it
==============  ==================================================================
"""

from faultdev.behaviour import (
    Behaviour,
    Beyond,
    Fault,
    Stats,
    bit_flip,
    dropped_write,
    flush_error,
    read_error,
    write_error,
)
from faultdev.device import FaultDevice, MakeFaultDevice

__all__ = [
    "Behaviour",
    "Beyond",
    "Fault",
    "FaultDevice",
    "MakeFaultDevice",
    "Stats",
    "bit_flip",
    "dropped_write",
    "flush_error",
    "read_error",
    "write_error",
]
