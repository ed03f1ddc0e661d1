"""``config``: the keys of config.json."""

from balenaflash.cli.lazy import lazy_group


@lazy_group(
    {
        "check": "config_reads:check",
        "get": "config_reads:get",
        "merge": "config_edits:merge",
        "set": "config_edits:set_keys",
        "show": "config_reads:show",
        "unset": "config_edits:unset",
    }
)
def config() -> None:
    """Look at and change config.json in the boot partition of an image.

    A KEY is a path such as developmentMode or os.sshKeys; a name with a dot in it goes into
    brackets and quotes, as in 'deviceApiKeys["api.balena-cloud.com"]'. Every key that balenaOS
    is known to read is checked; others are kept, with a warning. Order, layout and everything
    that is not changed stay as they are.

    \b
    Examples:
      balenaflash config show balena.img
      balenaflash config set balena.img developmentMode=true 'os.sshKeys+=@id_ed25519.pub'
      balenaflash config merge balena.img generated.json
    """
