"""``boot``: the files of the boot partition."""

from balenaflash.cli.lazy import lazy_group


@lazy_group(
    {
        "apply": "boot_apply:apply",
        "check": "boot_check:check",
        "cat": "boot_reads:cat",
        "get": "boot_reads:take",
        "ls": "boot_reads:list_files",
        "mkdir": "boot_edits:make_directory",
        "mv": "boot_edits:move",
        "put": "boot_edits:put",
        "rm": "boot_edits:remove",
        "splash": "boot_splash:splash",
        "use-internal": "boot_edits:use_internal",
    }
)
def boot() -> None:
    """Look at and change the boot partition of an image.

    A PATH is a place in the boot partition, with or without a slash in front. Where patterns are
    taken, * and ? match within a name, ** any number of directories, in any case; put them in
    quotes. IMAGE may also be a block device, such as a flashed card. An edit is made wholly or not
    at all, even if the power fails.

    \b
    Examples:
      balenaflash boot ls -l balena.img
      balenaflash boot put balena.img config.json
      balenaflash boot use-internal balena.img
    """
