"""A guest from its start to its end, and what is plugged into it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import balenaflash
from vm.build import GUEST_FILES, GuestKernel
from vm.processes import Agent, Process, Result
from vm.qmp import Monitor

_BOOT_TIMEOUT = 180.0  # seconds; an emulated processor takes 15 to 40
_PROBE_TIMEOUT = 10.0  # seconds; with KVM the kernel is up in 2
_PACKAGE = Path(balenaflash.__file__).resolve().parents[1]
_EMULATION = "tcg,thread=multi,tb-size=512"


class Machine:
    """A guest that runs."""

    def __init__(self, monitor: Monitor, agent: Agent) -> None:
        self._monitor = monitor
        self._agent = agent

    def start(
        self,
        *command: str | Path,
        user: str | None = None,
        terminal: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> Process:
        """Start a program inside, as root or ``user``, with a terminal of its own or without."""
        return self._agent.start(
            command, user=user, terminal=terminal, environment=environment or {}
        )

    def run(self, *command: str | Path) -> str:
        """What a program inside writes to standard output; it must succeed."""
        result = self.start(*command).wait()
        assert result.status == 0, f"{command}: {result}"
        return result.stdout

    def start_balenaflash(
        self, *arguments: str | Path, user: str | None = None, terminal: bool = False
    ) -> Process:
        """Start the ``balenaflash`` of this checkout inside."""
        environment = {"PYTHONPATH": str(_PACKAGE), "COLUMNS": "80", "TERM": "dumb"}
        command = (sys.executable, "-m", "balenaflash", *arguments)
        return self.start(*command, user=user, terminal=terminal, environment=environment)

    def run_balenaflash(self, *arguments: str | Path, user: str | None = None) -> Result:
        """Run the ``balenaflash`` of this checkout inside to its end, whatever its status."""
        return self.start_balenaflash(*arguments, user=user).wait()

    @contextmanager
    def plugged(
        self, backing: Path, *, serial: str, port: int, write_rate: int = 0
    ) -> Iterator["Stick"]:
        """A USB stick over a file in a port, until the block ends or it is unplugged.

        ``write_rate`` is the most bytes that it takes in a second, 0 for no limit.
        """
        stick = Stick(self._monitor, backing, serial=serial, port=port, write_rate=write_rate)
        try:
            self.wait_for_node(stick.link)
            yield stick
        finally:
            stick.unplug()
            self.run("udevadm", "settle")

    def wait_for_node(self, path: Path) -> None:
        """Return when udevd has made ``path`` and is done with everything else."""
        deadline = time.monotonic() + 60
        while self.start("test", "-e", path).wait().status:
            assert time.monotonic() < deadline, f"{path} did not come up"
            time.sleep(0.1)
        self.run("udevadm", "settle")


class Stick:
    """A USB stick in a port of the guest."""

    def __init__(
        self, monitor: Monitor, backing: Path, *, serial: str, port: int, write_rate: int
    ) -> None:
        self._monitor = monitor
        self._name = f"stick-{serial}"
        self._plugged = True
        self.link = Path(f"/dev/disk/by-id/usb-QEMU_QEMU_HARDDISK_{serial}-0:0")
        group, node = f"{self._name}-group", f"{self._name}-node"
        limits = {"bps-write": write_rate}
        raw = {"driver": "raw", "file": {"driver": "file", "filename": str(backing)}}
        monitor.execute("object-add", {"qom-type": "throttle-group", "id": group, "limits": limits})
        throttled = {"driver": "throttle", "throttle-group": group, "file": raw}
        monitor.execute("blockdev-add", {"node-name": node, **throttled})
        where = {"bus": "xhci.0", "port": str(port), "id": self._name}
        what = {"driver": "usb-storage", "drive": node, "serial": serial, "removable": True}
        monitor.execute("device_add", what | where)

    def bytes_written(self) -> int:
        """How many bytes have reached it since it was plugged in, as QEMU counts them."""
        devices: list[dict[str, Any]] = self._monitor.execute("query-blockstats")
        found = next(each for each in devices if self._name in each.get("qdev", ""))
        count: int = found["stats"]["wr_bytes"]
        return count

    def wait_for_bytes(self, count: int) -> None:
        """Return when ``count`` bytes have reached it."""
        deadline = time.monotonic() + 60
        while self.bytes_written() < count:
            assert time.monotonic() < deadline, f"{self.bytes_written()} bytes were written"
            time.sleep(0.02)

    def unplug(self) -> float:
        """Pull it out; when it was out by ``time.monotonic``. Nothing the second time."""
        if not self._plugged:
            return time.monotonic()
        self._plugged = False
        self._monitor.execute("device_del", {"id": self._name})
        self._monitor.wait_deleted(self._name)
        gone_at = time.monotonic()
        self._monitor.execute("blockdev-del", {"node-name": f"{self._name}-node"})
        self._monitor.execute("object-del", {"id": f"{self._name}-group"})
        return gone_at


@contextmanager
def running(kernel: GuestKernel, folder: Path, *, devices: tuple[str, ...]) -> Iterator[Machine]:
    """A guest with ``devices``, more arguments of QEMU, until the block ends.

    Sockets and the console's text are in ``folder``.
    """
    accelerator = _choose_accelerator(kernel)
    command = [
        *_command(kernel, accelerator),
        *("-append", _kernel_arguments()),
        *("-serial", f"file:{folder}/console"),
        *("-qmp", f"unix:{folder}/qmp,server=on,wait=off"),
        *("-chardev", f"socket,id=agent,path={folder}/agent,server=on,wait=off"),
        *("-device", "virtio-serial-pci"),
        *("-device", "virtserialport,chardev=agent,name=agent"),
        *("-device", "qemu-xhci,id=xhci,p2=8,p3=8"),
        *_shared("root", Path("/")),
        *_shared("modules", kernel.modules),
        *devices,
    ]
    with ExitStack() as stack:
        said = stack.enter_context((folder / "qemu").open("wb"))
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        stack.callback(_end, process)
        monitor = Monitor(_connect(folder / "qmp", process))
        stack.callback(monitor.close)
        agent = Agent(_connect(folder / "agent", process))
        stack.callback(agent.close)
        assert agent.wait_ready(_BOOT_TIMEOUT), (folder / "console").read_text(errors="replace")
        yield Machine(monitor, agent)


def _command(kernel: GuestKernel, accelerator: str) -> list[str]:
    processor = "host" if accelerator == "kvm" else "qemu64"
    return [
        "qemu-system-x86_64",
        *("-machine", "q35", "-accel", accelerator, "-cpu", processor),
        *("-m", "768", "-smp", "2", "-nodefaults", "-display", "none", "-no-reboot"),
        *("-kernel", str(kernel.kernel), "-initrd", str(kernel.initramfs)),
    ]


def _kernel_arguments() -> str:
    # The kernel hands what it does not know to init as environment.
    known = "console=ttyS0 panic=-1 quiet mitigations=off nokaslr random.trust_cpu=on"
    return f"{known} vm_guest={GUEST_FILES} vm_python={sys.executable}"


def _shared(tag: str, directory: Path) -> list[str]:
    options = "security_model=none,readonly=on,multidevs=remap"
    return [
        *("-fsdev", f"local,id={tag},path={directory},{options}"),
        *("-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"),
    ]


@cache
def _choose_accelerator(kernel: GuestKernel) -> str:
    """KVM where a kernel comes up with it: in a nested guest it may be there and hang, or abort."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return _EMULATION
    command = [*_command(kernel, "kvm"), "-append", "panic=-1 quiet vm_probe"]
    try:
        probe = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _EMULATION
    return _EMULATION if probe.returncode else "kvm"


def _connect(path: Path, process: "subprocess.Popen[bytes]") -> socket.socket:
    deadline = time.monotonic() + 20
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            said = (path.parent / "qemu").read_text()
            assert process.poll() is None, f"QEMU ended with {process.returncode}: {said}"
            assert time.monotonic() < deadline, f"no {path}: {said}"
            time.sleep(0.05)
        else:
            return connection


def _end(process: "subprocess.Popen[bytes]") -> None:
    # Its disks are files that nobody looks at afterwards, so there is nothing to shut down.
    process.kill()
    process.wait()
