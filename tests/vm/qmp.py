"""QEMU's control socket: JSON lines, commands with answers, events in between."""

import json
import queue
import socket
import threading
from collections.abc import Mapping
from typing import Any

_ANSWER_TIMEOUT = 30.0  # seconds


class CommandError(Exception):
    """QEMU refused a command; the text is its own."""


class Monitor:
    """A connection over an open socket, which it closes."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self._answers.get(timeout=_ANSWER_TIMEOUT)  # its greeting
        self.execute("qmp_capabilities")

    def _read(self) -> None:
        with self._connection.makefile("rb") as lines:
            for line in lines:
                message = json.loads(line)
                (self._events if "event" in message else self._answers).put(message)

    def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Run ``command`` and return what it returns.

        Raises:
            CommandError: it was refused.
        """
        message = {"execute": command, "arguments": arguments or {}}
        self._connection.sendall(json.dumps(message).encode() + b"\n")
        answer = self._answers.get(timeout=_ANSWER_TIMEOUT)
        if "error" in answer:
            raise CommandError(f"{command}: {answer['error']['desc']}")
        return answer["return"]

    def wait_deleted(self, device: str) -> None:
        """Return when the guest has let go of ``device``, and QEMU of it."""
        while True:
            message = self._events.get(timeout=_ANSWER_TIMEOUT)
            if message["event"] == "DEVICE_DELETED" and message["data"].get("device") == device:
                return

    def close(self) -> None:
        """Hang up."""
        self._connection.close()
