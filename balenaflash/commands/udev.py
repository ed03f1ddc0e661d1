"""The udev rules of this program: which are installed, and how to install or remove them."""

import grp
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from importlib import resources
from pathlib import Path

import balenaflash
from balenaflash.durable import replace_file
from balenaflash.errors import Problem, TargetRefusedError, refusal
from balenaflash.programs import run_and_explain
from balenaflash.targets.disks import Disk, list_disks
from balenaflash.targets.sysfs import RUNNING_KERNEL, Bus, Kernel
from balenaflash.targets.udev import UdevDatabase
from balenaflash.targets.usage import Usage

GROUP = "balenaflash"
"""Group whose members may write removable disks."""

_RULES = "60-balenaflash.rules"
_SLOT_RULES = "61-balenaflash-slots.rules"
_DIRECTORY = Path("etc/udev/rules.d")  # for the administrator's rules, udev(7)
_DIRECTORIES = (
    _DIRECTORY,
    Path("run/udev/rules.d"),
    Path("usr/local/lib/udev/rules.d"),
    Path("usr/lib/udev/rules.d"),
    Path("lib/udev/rules.d"),
)
"""Directories of rules, udev(7); of files with the same name udevd reads the first."""

_ACCESS = f'GROUP="{GROUP}", MODE="0660", TAG+="uaccess"'
_RELOAD = (
    ("udevadm", "control", "--reload"),
    ("udevadm", "trigger", "--subsystem-match=block", "--action=change"),
)


class State(StrEnum):
    """State of a file of rules."""

    CURRENT = "current"
    OUTDATED = "outdated"
    """It differs from what this version, with these slots, would install."""

    MISSING = "missing"
    SUPERFLUOUS = "superfluous"
    """It is there, but there are no slots any more."""


@dataclass(frozen=True, slots=True)
class RulesFile:
    """A file of rules."""

    path: Path
    content: str | None
    """``None`` if there should be no such file."""

    @property
    def state(self) -> State | None:
        """``None`` if the file should not be there, and is not."""
        found = self._read()
        if found is None:
            return None if self.content is None else State.MISSING
        if self.content is None:
            return State.SUPERFLUOUS
        return State.CURRENT if found == self.content else State.OUTDATED

    @property
    def is_settled(self) -> bool:
        """True if the file is current, or rightly not there."""
        return self.state in {None, State.CURRENT}

    @property
    def grants_access(self) -> bool:
        """True if the present file allows users other than root to write disks."""
        return _ACCESS in (self._read() or "")

    def _read(self) -> str | None:
        try:
            return self.path.read_text("utf-8", "replace")
        except (FileNotFoundError, NotADirectoryError):
            return None


@dataclass(frozen=True, slots=True)
class Task:
    """One step of an installation or removal."""

    words: str
    do: Callable[[], str | None]
    """Carries it out; the reason in one line if it fails, else ``None``."""


class Scope(StrEnum):
    """Disks that the rules give access to."""

    ALL = "all"
    """Every USB disk and SD card."""

    SLOTS = "slots"
    """Disks in named USB ports."""


def rules_files(root: Path, slots: Mapping[str, str], scope: Scope) -> tuple[RulesFile, ...]:
    """The files of rules that belong below ``root``; ``/`` unless a package is made."""
    directory = root / _DIRECTORY
    general = _shipped_rules() if scope is Scope.ALL else None
    own = slot_rules(slots, scope) if slots else None
    return (RulesFile(directory / _RULES, general), RulesFile(directory / _SLOT_RULES, own))


def read_files(root: Path, slots: Mapping[str, str], scope: Scope) -> tuple[RulesFile, ...]:
    """As `rules_files`, each where udevd reads it now: a package may install it elsewhere."""
    files = []
    for file in rules_files(root, slots, scope):
        places = [root / directory / file.path.name for directory in _DIRECTORIES]
        path = next((each for each in places if os.path.lexists(each)), file.path)
        files.append(RulesFile(path, file.content))
    return tuple(files)


def find_scope(root: Path) -> Scope:
    """Scope of the rules that are installed below ``root``; `Scope.ALL` if there are none."""
    general, own = read_files(root, {}, Scope.ALL)
    return Scope.SLOTS if general.state is State.MISSING and own.grants_access else Scope.ALL


def slot_rules(slots: Mapping[str, str], scope: Scope) -> str:
    """Rules for the USB ports in ``slots``, by name: a link, and no automatic mounting.

    With `Scope.SLOTS` they also give the access that the general rules give otherwise.
    """
    lines = [
        "# Made by `balenaflash udev install` of the names given by `balenaflash devices name`.",
        "# The disk in a named port has a link below /dev/balenaflash. Neither it nor its",
        "# partitions are mounted, or shown, by the desktop: udisks(8), UDISKS_IGNORE.",
        "# KERNELS is an interface of the device in that port: a disk behind a hub has none of it.",
        'SUBSYSTEM!="block", GOTO="balenaflash_slots_end"',
    ]
    for name, port in sorted(slots.items()):
        match = f'SUBSYSTEMS=="usb", KERNELS=="{port}:*"'
        is_disk = 'ENV{DEVTYPE}=="disk"'
        lines.append(f'{match}, ENV{{UDISKS_IGNORE}}="1"')
        lines.append(f'{match}, {is_disk}, SYMLINK+="balenaflash/{name}"')
        if scope is Scope.SLOTS:
            lines.append(f"{match}, {is_disk}, {_ACCESS}")
    lines.append('LABEL="balenaflash_slots_end"')
    return "".join(f"{line}\n" for line in lines)


def find_covered_system(
    slots: Mapping[str, str],
    scope: Scope,
    kernel: Kernel = RUNNING_KERNEL,
    database: UdevDatabase | None = None,
) -> Iterator[Problem]:
    """Each disk that the rules would give to ordinary users and that the system runs from.

    Raises:
        TargetRefusedError: the kernel does not report what is in use.
        ToolMissingError: libudev is not installed.
    """
    usage = Usage(kernel)
    for disk in list_disks(kernel, database):
        reasons = ", ".join(usage.of_system(disk))
        if _is_covered(disk, slots, scope) and (reasons or usage.is_system_unknown):
            fact = f"holds the running system ({reasons})" if reasons else "may hold the system"
            yield Problem(
                "udev-covers-system",
                f"{disk.node}: {fact}, and these rules would let users other than root write it",
                _NAMED_PORTS_ONLY if scope is Scope.ALL else "Name other ports, or write as root.",
            )


_NAMED_PORTS_ONLY = (
    "Give access to single USB ports: balenaflash devices name PORT NAME; then "
    "sudo balenaflash udev install --slots-only"
)


def _is_covered(disk: Disk, slots: Mapping[str, str], scope: Scope) -> bool:
    if scope is Scope.SLOTS:
        return disk.usb_port in slots.values()
    return disk.usb_port is not None or disk.bus in {Bus.USB, Bus.SD}


def installation(root: Path, slots: Mapping[str, str], scope: Scope) -> tuple[Task, ...]:
    """The steps until all rules are installed; none if they are.

    Raises:
        TargetRefusedError: ``udev-covers-system``: the rules would give away the running system;
            ``udev-rules-packaged``: a package has installed more; or as `find_covered_system`.
        ToolMissingError: as `find_covered_system`.
    """
    is_here = root == Path("/")
    found = read_files(root, slots, scope)
    problems = list(find_covered_system(slots, scope)) if is_here else []
    problems = problems or [
        Problem(
            "udev-rules-packaged",
            f"{each.path}: gives more access than requested, and belongs to a package",
            "Remove that package, or this file.",
        )
        for each in found
        if each.state is State.SUPERFLUOUS and each.path.parent != root / _DIRECTORY
    ]
    if problems:
        raise TargetRefusedError(problems)
    tasks: list[Task] = []
    if is_here and not has_group():
        command = ("groupadd", "--system", GROUP)
        tasks.append(Task(f"make the group {GROUP}", partial(run_and_explain, command)))
    current = {each.path.name for each in found if each.is_settled}
    changes = [each for each in rules_files(root, slots, scope) if each.path.name not in current]
    tasks += [_change(each) for each in changes if each.state is not None]
    return (*tasks, *_reloading(is_needed=is_here and bool(changes)))


def removal(root: Path) -> tuple[Task, ...]:
    """The steps until no rules are installed; the group stays."""
    there = [
        RulesFile(each.path, None)
        for each in rules_files(root, {}, Scope.ALL)
        if each.state not in {None, State.MISSING}
    ]
    tasks = [_change(each) for each in there]
    return (*tasks, *_reloading(is_needed=root == Path("/") and bool(there)))


def find_packaged(root: Path) -> tuple[Path, ...]:
    """Rules below ``root`` that `removal` leaves: those where only packages install them."""
    places = [
        root / directory / name for directory in _DIRECTORIES for name in (_RULES, _SLOT_RULES)
    ]
    return tuple(each for each in places if each.parent != root / _DIRECTORY and each.is_file())


def find_problems(slots: Mapping[str, str]) -> Iterator[Problem]:
    """Reasons why this user cannot write removable disks without being root, and dangers.

    Raises:
        TargetRefusedError, ToolMissingError: as `find_covered_system`.
    """
    root = Path("/")
    scope = find_scope(root)
    again = "sudo balenaflash udev install" + (" --slots-only" if scope is Scope.SLOTS else "")
    files = read_files(root, slots, scope)
    for file in files:
        if not file.is_settled:
            yield Problem(
                f"udev-rules-{file.state}",
                f"{file.path}: {_STATES[file.state]}",
                f"Run: {again}",
            )
    if any(os.path.lexists(file.path) for file in files):
        yield from find_covered_system(slots, scope)
    if not has_group():
        yield Problem("udev-group-missing", f"the group {GROUP} does not exist", f"Run: {again}")
    elif os.geteuid() != 0 and grp.getgrnam(GROUP).gr_gid not in os.getgroups():
        yield Problem(
            "udev-not-member",
            f"you are not in the group {GROUP} (not needed when logged in at the machine itself)",
            f"Run as root: usermod -aG {GROUP} USER; then log in anew.",
        )


def carry_out(task: Task) -> None:
    """Carry out one step.

    Raises:
        TargetRefusedError: it failed (``udev-not-changed``); the steps before it stay done.
    """
    reason = task.do()
    if reason is not None:
        hint = "Run it as root." if os.geteuid() else None
        raise refusal("udev-not-changed", f"cannot {task.words}: {reason}", hint)


def has_group() -> bool:
    """True if the group exists."""
    try:
        grp.getgrnam(GROUP)
    except KeyError:
        return False
    return True


_STATES = {
    None: "",
    State.CURRENT: "is installed",
    State.MISSING: "is not installed",
    State.OUTDATED: "is not that of this version, or of these slots",
    State.SUPERFLUOUS: "names slots, and there are none",
}


def _shipped_rules() -> str:
    installed = resources.files("balenaflash").joinpath("share/udev", _RULES)
    if installed.is_file():
        return installed.read_text("utf-8")
    # A checkout, in which the folder is not part of the package yet.
    return (Path(balenaflash.__file__).parents[1] / "udev" / _RULES).read_text("utf-8")


def _change(file: RulesFile) -> Task:
    if file.content is None:
        return Task(f"remove {file.path}", partial(_remove, file.path))
    verb = "replace" if file.state is State.OUTDATED else "write"
    return Task(f"{verb} {file.path}", partial(_write, file.path, file.content))


def _reloading(*, is_needed: bool) -> Iterator[Task]:
    for command in _RELOAD if is_needed else ():
        yield Task(f"run {' '.join(command)}", partial(_run_if_there, command))


def _run_if_there(command: Sequence[str]) -> str | None:
    # Without a running udevd the rules are read when it starts.
    return run_and_explain(command) if RUNNING_KERNEL.has_udevd else None


def _write(path: Path, content: str) -> str | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content.encode())
    except OSError as error:
        return error.strerror
    return None


def _remove(path: Path) -> str | None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        return error.strerror
    return None
