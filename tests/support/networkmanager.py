"""NetworkManager's own library as the judge of keyfiles, in a process of its own.

It is reached through Debian's ``python3-gi`` and ``gir1.2-nm-1.0``, which belong to the system's
Python and not to the one that runs the tests.
"""

import base64
import json
import subprocess
from types import TracebackType
from typing import Self

import pytest
from capabilities import SYSTEM_PYTHON

_SCRIPT = """
import base64, json, sys
import gi
gi.require_version("NM", "1.0")
from gi.repository import GLib, NM

def tell_ip(setting):
    if setting is None:
        return None
    return {
        "method": setting.get_method(),
        "addresses": [
            f"{each.get_address()}/{each.get_prefix()}"
            for each in map(setting.get_address, range(setting.get_num_addresses()))
        ],
        "gateway": setting.get_gateway(),
        "dns": [setting.get_dns(at) for at in range(setting.get_num_dns())],
    }

def tell(data):
    keyfile = GLib.KeyFile()
    keyfile.load_from_data(data.decode(), len(data), GLib.KeyFileFlags.NONE)
    flags = NM.KeyfileHandlerFlags.NONE
    connection = NM.keyfile_read(keyfile, "/etc/NetworkManager/system-connections", flags, None)
    connection.verify()
    general = connection.get_setting_connection()
    wireless = connection.get_setting_wireless()
    security = connection.get_setting_wireless_security()
    if security is not None:
        security.verify_secrets(connection)
    return {
        "id": general.get_id(),
        "uuid": general.get_uuid(),
        "type": general.get_connection_type(),
        "interface": general.get_interface_name(),
        "autoconnect": general.get_autoconnect(),
        "priority": general.get_autoconnect_priority(),
        "ssid": None if wireless is None else wireless.get_ssid().get_data().hex(),
        "hidden": None if wireless is None else wireless.get_hidden(),
        "key-mgmt": None if security is None else security.get_key_mgmt(),
        "psk": None if security is None else security.get_psk(),
        "ipv4": tell_ip(connection.get_setting_ip4_config()),
        "ipv6": tell_ip(connection.get_setting_ip6_config()),
    }

for line in sys.stdin:
    try:
        answer = tell(base64.b64decode(line))
    except GLib.Error as error:
        answer = {"error": error.message}
    print(json.dumps(answer), flush=True)
"""


needs_libnm = pytest.mark.needs("libnm")
needs_nmcli = pytest.mark.needs("nmcli")


class Libnm:
    """libnm, to be asked what it makes of keyfiles."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [SYSTEM_PYTHON, "-c", _SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def read(self, keyfile: bytes) -> dict[str, object]:
        """What it reads, or its message under ``error``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(base64.b64encode(keyfile) + b"\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert isinstance(answer, dict)
        return answer


def nmcli_keyfile(*arguments: str) -> bytes:
    """The keyfile that nmcli makes of ``connection add ARGUMENTS``, without a daemon."""
    command = ["nmcli", "--offline", "connection", "add", *arguments]
    return subprocess.run(command, capture_output=True, check=True).stdout
