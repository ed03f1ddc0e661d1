"""``network``: the networks a board knows from its first start."""

from balenaflash.cli.lazy import lazy_group


@lazy_group({"add": "network_add:add", "ls": "network_list:list_all", "rm": "network_list:remove"})
def network() -> None:
    """Look at and change the networks that boards join: /system-connections of an image.

    Each is a keyfile of NetworkManager. balenaOS's samples, which end in .ignore, are shown as
    such and left alone.

    \b
    Examples:
      balenaflash network add wifi balena.img --ssid Lab --psk-file lab.psk
      balenaflash network ls balena.img
    """
