"""``udev``: let people write removable disks without root."""

from balenaflash.cli.lazy import lazy_group


@lazy_group(
    {
        "check": "udev_commands:check",
        "install": "udev_commands:install",
        "uninstall": "udev_commands:uninstall",
    }
)
def udev() -> None:
    """Let people write removable disks without root, by rules for udev.

    The rules give access to USB disks and SD cards to the group balenaflash and to whoever sits at
    the machine. The USB ports named by `devices name` get links such as /dev/balenaflash/left, and
    the desktop keeps away from them.

    \b
    Examples:
      balenaflash udev install --dry-run
      sudo balenaflash udev install
      balenaflash udev check
    """
