"""What went wrong with a medium, in words, from the error number of a system call."""

import errno

_GONE = frozenset({errno.ENODEV, errno.ENXIO, errno.ENOMEDIUM})

_SENTENCES = {
    errno.ENOSPC: "there is no room left",
    errno.EFBIG: "the filesystem allows no file of this size",
    errno.EDQUOT: "the disk quota is used up",
    errno.EIO: "the medium reports an error (Input/output error)",
    # A bad sector of a SCSI or USB disk, block/blk-core.c: BLK_STS_MEDIUM.
    errno.ENODATA: "the medium reports an unreadable sector",
    errno.EREMOTEIO: "the medium reports an error (Remote I/O error)",
    errno.ETIMEDOUT: "the medium does not answer",
    errno.EPERM: "it is write-protected",
    errno.EROFS: "it is write-protected",
}


def describe_failure(error: OSError, *, is_gone: bool = False) -> str:
    """A clause that says why, such as "there is no room left".

    ``is_gone`` says that the device is known to have vanished: an unplugged disk has size
    0, and writing beyond the end is answered like a full one.
    """
    if is_gone or error.errno in _GONE:
        return "the device has vanished; was it unplugged?"
    return _SENTENCES.get(error.errno or 0, error.strerror or str(error))
