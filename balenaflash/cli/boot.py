"""``boot``: the files of the boot partition."""

from balenaflash.cli.lazy import lazy_group


@lazy_group(
    {
        "apply": "boot_apply:apply",
        "cat": "boot_reads:cat",
        "get": "boot_reads:take",
        "ls": "boot_reads:list_files",
        "mkdir": "boot_edits:make_directory",
        "put": "boot_edits:put",
        "rm": "boot_edits:remove",
        "splash": "boot_splash:splash",
        "use-internal": "boot_edits:use_internal",
    }
)
def boot() -> None:
    """Look at and change the boot partition of an image file.

    A PATH is a place in the boot partition, with or without a slash in front. Reading commands
    also take a block device, such as a flashed card, as IMAGE. An edit is made wholly or not at
    all, even if the power fails.

    \b
    Examples:
      balenaflash boot ls -l balena.img
      balenaflash boot put balena.img config.json
      balenaflash boot use-internal balena.img
    """
