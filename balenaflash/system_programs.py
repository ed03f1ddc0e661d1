"""Where programs of the system are found, and what they get of the environment."""

import os

_FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""Only root writes to them. The PATH of Debian's ordinary users leaves some of them out."""


def find_system_program(name: str) -> str | None:
    """The path of a program; ``None`` if it is not installed."""
    return _which(name, _search_path())


def find_typed_program(name: str, *, by_sudo: bool) -> str | None:
    """What the user's shell, or sudo, takes for ``name``; to be told, never to be run."""
    # The folders are those of sudo's secure_path, as Debian and Ubuntu configure it.
    return _which(name, os.pathsep.join(_FOLDERS) if by_sudo else None)


def minimal_environment(**more: str) -> dict[str, str]:
    """The environment that a program is run with: it gets no variable of the user's but PATH.

    Some change what a program does, and some are secrets.
    """
    return {"LC_ALL": "C.UTF-8", "PATH": _search_path(), **more}


def _search_path() -> str:
    if os.geteuid() == 0:
        # The PATH that `su` or `sudo -E` leaves to root may begin with a folder of a user.
        return os.pathsep.join(_FOLDERS)
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *_FOLDERS])


def _which(name: str, path: str | None) -> str | None:
    import shutil  # noqa: PLC0415 - it loads every compressor, and every command this module

    return shutil.which(name, path=path)
