"""Programs inside the guest, as a test starts, watches and waits for them."""

import itertools
import json
import queue
import signal
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_READY = 0  # the number of the agent's first message


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a program."""

    status: int
    """Its exit status; of one ended by a signal, the negative number of it."""

    stdout: str
    stderr: str
    ended_at: float
    """When its end was told here, by ``time.monotonic``."""


class Process:
    """A program that was started."""

    def __init__(self, agent: "Agent", number: int) -> None:
        self._agent = agent
        self._number = number
        self._messages: queue.Queue[dict[str, Any]] = queue.Queue()
        self._texts: defaultdict[str, str] = defaultdict(str)
        self._status: int | None = None
        self._ended_at = 0.0

    def receive(self, message: dict[str, Any]) -> None:
        """Take what the agent tells of it."""
        if "status" in message:
            self._ended_at = time.monotonic()
        self._messages.put(message)

    def type(self, text: str) -> None:
        """Type on its terminal."""
        self._agent.send({"id": self._number, "type": text})

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, while it runs."""
        self._agent.send({"id": self._number, "signal": int(number)})

    def wait_for(self, text: str, *, stream: str = "terminal", timeout: float = 60) -> None:
        """Return when it has written ``text`` on ``stream``."""
        deadline = time.monotonic() + timeout
        while text not in self._texts[stream]:
            self._take(deadline)

    def wait(self, timeout: float = 120) -> Result:
        """Its result, when it has ended; fails after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while self._status is None:
            self._take(deadline)
        stdout = self._texts["stdout"] + self._texts["terminal"]
        return Result(self._status, stdout, self._texts["stderr"], self._ended_at)

    def _take(self, deadline: float) -> None:
        assert self._status is None, f"it ended with {self._status}: {dict(self._texts)}"
        try:
            message = self._messages.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise AssertionError(f"it said nothing more in time: {dict(self._texts)}") from None
        if "status" in message:
            self._status = message["status"]
        else:
            self._texts[message["stream"]] += message["text"]


class Agent:
    """The agent in the guest, over an open socket, which it closes."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._numbers = itertools.count(_READY + 1)
        self._processes: dict[int, Process] = {}
        self._ready = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with self._connection.makefile("rb") as lines:
            for line in lines:
                message = json.loads(line)
                if message["id"] == _READY:
                    self._ready.set()
                else:
                    self._processes[message["id"]].receive(message)

    def wait_ready(self, timeout: float) -> bool:
        """Whether the guest has come up within ``timeout`` seconds."""
        return self._ready.wait(timeout)

    def send(self, message: Mapping[str, object]) -> None:
        """Tell the agent something."""
        self._connection.sendall(json.dumps(message).encode() + b"\n")

    def start(
        self,
        command: Sequence[str | Path],
        *,
        user: str | None,
        terminal: bool,
        environment: Mapping[str, str],
    ) -> Process:
        """Start ``command`` inside the guest."""
        number = next(self._numbers)
        process = self._processes[number] = Process(self, number)
        words = [str(word) for word in command]
        self.send(
            {
                "id": number,
                "start": words,
                "user": user,
                "terminal": terminal,
                "environment": dict(environment),
            }
        )
        return process

    def close(self) -> None:
        """Hang up."""
        self._connection.close()
