"""Runs programs inside the guest, told by JSON lines on a virtio port.

To it: ``{"id", "start": [...], "user", "terminal", "environment"}`` ``{"id", "type": text}``,
and ``{"id", "signal": number}``.
From it: ``{"id": 0}`` once, when it is ready; ``{"id", "stream", "text"}`` as a program writes,
and ``{"id", "status"}`` when it has ended. With ``terminal`` the program has a terminal of its own
for all three streams.
"""

import json
import os
import pty
import pwd
import subprocess
import threading
from pathlib import Path
from typing import Any, BinaryIO

PORT_NAME = "agent"


class Agent:
    """Programs that run, by the number they were given."""

    def __init__(self, port: BinaryIO) -> None:
        self._port = port
        self._sending = threading.Lock()
        self._terminals: dict[int, int] = {}
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    def serve(self) -> None:
        """Answer for ever; the guest ends from outside."""
        self._send(id=0)
        for line in self._port:
            told = json.loads(line)
            if "type" in told:
                os.write(self._terminals[told["id"]], told["type"].encode())
            elif "signal" in told:
                self._running[told["id"]].send_signal(told["signal"])
            else:
                threading.Thread(target=self._run, args=(told,), daemon=True).start()

    def _send(self, **answer: object) -> None:
        with self._sending:
            self._port.write(json.dumps(answer).encode() + b"\n")

    def _run(self, told: dict[str, Any]) -> None:
        number = told["id"]
        try:
            process, streams = self._start(told)
        except OSError as error:
            self._send(id=number, stream="stderr", text=str(error))
            self._send(id=number, status=127)
            return
        self._running[number] = process
        readers = [
            threading.Thread(target=self._forward, args=(number, name, descriptor))
            for name, descriptor in streams.items()
        ]
        for reader in readers:
            reader.start()
        status = process.wait()
        for reader in readers:
            reader.join()
        self._send(id=number, status=status)

    def _start(self, told: dict[str, Any]) -> tuple["subprocess.Popen[bytes]", dict[str, int]]:
        options: dict[str, Any] = {"env": {**os.environ, **told["environment"]}}
        if told["user"] is not None:
            account = pwd.getpwnam(told["user"])
            groups = os.getgrouplist(account.pw_name, account.pw_gid)
            options |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": groups}
        if told["terminal"]:
            ours, theirs = pty.openpty()
            self._terminals[told["id"]] = ours
            process = subprocess.Popen(
                told["start"], stdin=theirs, stdout=theirs, stderr=theirs, **options
            )
            os.close(theirs)
            return process, {"terminal": ours}
        out, err = os.pipe(), os.pipe()
        process = subprocess.Popen(
            told["start"], stdin=subprocess.DEVNULL, stdout=out[1], stderr=err[1], **options
        )
        os.close(out[1])
        os.close(err[1])
        return process, {"stdout": out[0], "stderr": err[0]}

    def _forward(self, number: int, name: str, descriptor: int) -> None:
        while data := _read_available(descriptor):
            self._send(id=number, stream=name, text=data.decode(errors="replace"))
        os.close(descriptor)


def _read_available(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""  # EIO: nobody has the other side of the terminal any more


def _find_port() -> Path:
    for directory in Path("/sys/class/virtio-ports").iterdir():
        if (directory / "name").read_text().strip() == PORT_NAME:
            return Path("/dev", directory.name)
    raise FileNotFoundError(PORT_NAME)


if __name__ == "__main__":
    with _find_port().open("r+b", buffering=0) as opened:
        Agent(opened).serve()
