"""The udev rules of this program: what of them is installed, and how to change that."""

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
from balenaflash.errors import Problem, TargetRefusedError
from balenaflash.target.kernel import RUNNING_KERNEL
from balenaflash.target.programs import run_program

GROUP = "balenaflash"
"""Its members may write removable disks."""

_RULES = "60-balenaflash.rules"
_SLOT_RULES = "61-balenaflash-slots.rules"
_DIRECTORY = Path("etc/udev/rules.d")  # where the administrator's rules are, udev(7)
_RELOAD = (
    ("udevadm", "control", "--reload"),
    ("udevadm", "trigger", "--subsystem-match=block", "--action=change"),
)


class State(StrEnum):
    """What there is of a file."""

    CURRENT = "current"
    OUTDATED = "outdated"
    """It is not what this version, with these slots, would install."""

    MISSING = "missing"
    SUPERFLUOUS = "superfluous"
    """There are no slots any more."""


@dataclass(frozen=True, slots=True)
class RulesFile:
    """A file of rules."""

    path: Path
    content: str | None
    """``None``: there should be no such file."""

    @property
    def state(self) -> State | None:
        """What there is of it; ``None`` where nothing should be, and nothing is."""
        found = self._read()
        if found is None:
            return None if self.content is None else State.MISSING
        if self.content is None:
            return State.SUPERFLUOUS
        return State.CURRENT if found == self.content else State.OUTDATED

    def _read(self) -> str | None:
        try:
            return self.path.read_text("utf-8", "replace")
        except (FileNotFoundError, NotADirectoryError):
            return None


@dataclass(frozen=True, slots=True)
class Action:
    """One thing to do."""

    words: str
    do: Callable[[], str | None]
    """Does it; ``None`` when it is done, else why not, in a line."""


def rules_files(root: Path, slots: Mapping[str, str]) -> tuple[RulesFile, ...]:
    """What belongs below ``root``, which is ``/`` but for who makes a package."""
    directory = root / _DIRECTORY
    return (
        RulesFile(directory / _RULES, _shipped_rules()),
        RulesFile(directory / _SLOT_RULES, slot_rules(slots) if slots else None),
    )


def slot_rules(slots: Mapping[str, str]) -> str:
    """Rules for the USB ports in ``slots``, by name: a link, and nothing mounted by itself."""
    lines = [
        "# Made by `balenaflash udev install` of the names given by `balenaflash devices name`.",
        "# The disk in a named port has a link below /dev/balenaflash. Neither it nor its",
        "# partitions are mounted, or shown, by the desktop: udisks(8), UDISKS_IGNORE.",
        'SUBSYSTEM!="block", GOTO="balenaflash_slots_end"',
    ]
    for name, port in sorted(slots.items()):
        match = f'SUBSYSTEMS=="usb", KERNELS=="{port}"'
        lines.append(f'{match}, ENV{{UDISKS_IGNORE}}="1"')
        lines.append(f'{match}, ENV{{DEVTYPE}}=="disk", SYMLINK+="balenaflash/{name}"')
    lines.append('LABEL="balenaflash_slots_end"')
    return "".join(f"{line}\n" for line in lines)


def installation(root: Path, slots: Mapping[str, str]) -> tuple[Action, ...]:
    """What is to be done until all is installed; nothing where it is."""
    actions: list[Action] = []
    is_here = root == Path("/")
    if is_here and not has_group():
        command = ("groupadd", "--system", GROUP)
        actions.append(Action(f"make the group {GROUP}", partial(run_program, command)))
    changes = [each for each in rules_files(root, slots) if each.state not in {None, State.CURRENT}]
    actions += [_change(each) for each in changes]
    return (*actions, *_reloading(is_needed=is_here and bool(changes)))


def removal(root: Path) -> tuple[Action, ...]:
    """What is to be done until no rules are installed; the group stays."""
    there = [each for each in rules_files(root, {}) if each.state is not None]
    there = [each for each in there if each.state is not State.MISSING]
    actions = [_change(RulesFile(each.path, None)) for each in there]
    return (*actions, *_reloading(is_needed=root == Path("/") and bool(there)))


def find_problems(slots: Mapping[str, str]) -> Iterator[Problem]:
    """What keeps this user from writing removable disks without being root."""
    for file in rules_files(Path("/"), slots):
        if file.state not in {None, State.CURRENT}:
            yield Problem(
                f"udev-rules-{file.state}",
                f"{file.path}: {_STATES[file.state]}",
                "Run as root: balenaflash udev install",
            )
    if not has_group():
        yield Problem(
            "udev-group-missing",
            f"there is no group {GROUP}",
            "Run as root: balenaflash udev install",
        )
    elif os.geteuid() != 0 and grp.getgrnam(GROUP).gr_gid not in os.getgroups():
        yield Problem(
            "udev-not-member",
            f"this user is not in the group {GROUP}; who sits at the machine need not be",
            f"Run as root: usermod -aG {GROUP} USER; then log in anew.",
        )


def carry_out(action: Action) -> None:
    """Do it.

    Raises:
        TargetRefusedError: with code ``udev-not-changed``: it cannot be done. What was done before
            stays.
    """
    reason = action.do()
    if reason is not None:
        raise TargetRefusedError(
            [
                Problem(
                    "udev-not-changed",
                    f"cannot {action.words}: {reason}",
                    "Run it as root." if os.geteuid() else None,
                )
            ]
        )


def has_group() -> bool:
    """Whether there is the group."""
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
    # Of a checkout, where the folder is not a part of the package yet.
    return (Path(balenaflash.__file__).parents[1] / "udev" / _RULES).read_text("utf-8")


def _change(file: RulesFile) -> Action:
    if file.content is None:
        return Action(f"remove {file.path}", partial(_remove, file.path))
    verb = "replace" if file.state is State.OUTDATED else "write"
    return Action(f"{verb} {file.path}", partial(_write, file.path, file.content))


def _reloading(*, is_needed: bool) -> Iterator[Action]:
    for command in _RELOAD if is_needed else ():
        yield Action(f"run {' '.join(command)}", partial(_run_if_there, command))


def _run_if_there(command: Sequence[str]) -> str | None:
    # Where no udevd runs the rules are read when it starts.
    return run_program(command) if RUNNING_KERNEL.has_udevd else None


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
