"""The edits that the steps of a recipe stand for."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from balenaflash.edits.bootloader import UseInternal
from balenaflash.edits.change import Edit
from balenaflash.edits.config.edit import (
    ConfigStep,
    EditConfig,
    MergeObject,
    SetKey,
    UnsetKey,
    parse_assignment,
)
from balenaflash.edits.config.json_text import MAX_SIZE as MAX_JSON
from balenaflash.edits.config.json_text import parse_document
from balenaflash.edits.config.keys import KeyPath, format_key, parse_key
from balenaflash.edits.config.rules import is_secret
from balenaflash.edits.copies import CopyIn
from balenaflash.edits.file_list import ApplyFileList, parse
from balenaflash.edits.files import FileChange, MakeDirectory, Move, Remove
from balenaflash.edits.given_text import given_bytes
from balenaflash.edits.keyfile import ALIASES, MAX_SIZE, parse_keyfile
from balenaflash.edits.network import (
    AddNetwork,
    Common,
    EthernetConnection,
    RemoveNetwork,
    Security,
    WifiConnection,
    check_keyfile,
    default_name,
    parse_ip,
)
from balenaflash.edits.recipe.step import Step, read_content, read_text
from balenaflash.edits.splash import SetSplash
from balenaflash.errors import ConfigError
from balenaflash.formats.fat.pyfatfs import FatVolume
from balenaflash.units import MIB

_PRIORITY_MAX = 999  # NetworkManager's nm-settings-keyfile(5), connection.autoconnect-priority


def wifi_edits(step: Step) -> Iterator[Edit]:
    """Add a Wi-Fi network, and set the country if one is given."""
    ssid = step.text("wifi") or ""
    security, passphrase = _security(step)
    connection = WifiConnection(
        common=_common(step, default_name("wifi", ssid)),
        ssid=ssid.encode("utf-8", "surrogateescape"),
        security=security,
        passphrase=passphrase,
        hidden=step.flag("hidden"),
    )
    yield AddNetwork(connection.common.name, connection.keyfile(), step.flag("overwrite"))
    if (country := step.text("country")) is not None:
        yield EditConfig((SetKey(("country",), country.upper()),))


def ethernet_edits(step: Step) -> Iterator[Edit]:
    """Add a wired network."""
    common = _common(step, default_name("ethernet", step.text("interface") or ""))
    keyfile = EthernetConnection(common).keyfile()
    yield AddNetwork(common.name, keyfile, step.flag("overwrite"))


def keyfile_edits(step: Step) -> Iterator[Edit]:
    """Add the network of a keyfile as it is."""
    path = step.path("keyfile")
    content = given_bytes(read_content(path, limit=MAX_SIZE), str(path))
    kind = parse_keyfile(content, str(path)).value("connection", "type") or "wifi"
    check_keyfile(content, str(path), ALIASES.get(kind, kind))
    yield AddNetwork(step.text("name") or path.name, content, step.flag("overwrite"))


def _security(step: Step) -> tuple[Security, str | None]:
    """How the network is secured, and the passphrase."""
    given = [name for name in ("psk", "psk-file", "open") if step.values.get(name)]
    if len(given) != 1:
        raise ConfigError(
            f"{' and '.join(given)} exclude each other" if given else "psk is missing",
            code="recipe-network",
            hint='Give one of psk = "${env:NAME}", psk-file = "FILE" and open = true.',
        )
    if step.flag("open"):
        if step.flag("wpa3"):
            raise ConfigError("open and wpa3 exclude each other", code="recipe-network")
        return Security.OPEN, None
    passphrase = step.text("psk") if "psk" in given else read_text(step.path("psk-file"))
    return Security.SAE if step.flag("wpa3") else Security.WPA_PSK, passphrase


def _common(step: Step, default_name: str) -> Common:
    priority = step.number("priority")
    if abs(priority) > _PRIORITY_MAX:
        raise ConfigError(
            f"priority is {priority}, where -{_PRIORITY_MAX} to {_PRIORITY_MAX} can be",
            code="recipe-network",
        )
    return Common(
        name=step.text("name") or default_name,
        interface=step.text("interface"),
        autoconnect=step.flag("autoconnect", default=True),
        priority=priority,
        ip=parse_ip(step.texts("address"), step.texts("gateway"), step.texts("dns")),
    )


_MAX_PICTURE = 64 * MIB
"""Bytes; boot partitions have 40 to 100 MiB."""


@dataclass(frozen=True, slots=True)
class StepEdit:
    """An edit of a recipe; what is wrong with it is said with the line of its step."""

    edit: Edit = field(repr=False)
    """It may hold a secret."""

    step: Step

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        """Make it so in ``volume``."""
        with self.step.source.blamed(self.step.key(self.step.kind)):
            return self.edit.apply(volume)

    def describe(self) -> str:
        """What it does, in a few words."""
        return self.edit.describe()


def edits_of(step: Step) -> tuple[StepEdit, ...]:
    """What ``step`` asks for; the local files that it names are read, but for those it copies.

    Raises:
        ConfigError: it cannot be done; the message begins with its place.
        EditError: likewise, such as for a file that cannot be read.
    """
    if step.kind == "config-set":
        # Each assignment has a line of its own.
        edits: tuple[Edit, ...] = (EditConfig(tuple(_assignments(step))),)
    else:
        with step.source.blamed(step.key(step.kind)):
            edits = tuple(_EDITS[step.kind](step))
    return tuple(StepEdit(edit, step) for edit in edits)


def _put(step: Step) -> Iterator[Edit]:
    sources = tuple(map(step.local, step.texts("put")))
    if step.source.path.parent in sources:
        raise ConfigError(
            "a recipe does not put the directory it is in",
            code="recipe-source",
            hint="Name what is to be put.",
        )
    yield CopyIn(sources, step.text("to") or "/")


def _apply(step: Step) -> Iterator[Edit]:
    yield ApplyFileList(parse(read_text(step.path("apply"))), step.path("deploy-dir"))


def _remove(step: Step) -> Iterator[Edit]:
    for path in step.texts("rm"):
        yield Remove(path, step.flag("recursive"))


def _make_directory(step: Step) -> Iterator[Edit]:
    for path in step.texts("mkdir"):
        yield MakeDirectory(path, step.flag("parents"))


def _move(step: Step) -> Iterator[Edit]:
    yield Move(step.texts("mv"), step.text("to") or "/")


def _use_internal(step: Step) -> Iterator[Edit]:
    yield UseInternal(step.text("from"), step.text("to"), step.flag("keep-old"))


def _splash(step: Step) -> Iterator[Edit]:
    path = step.path("splash")
    yield SetSplash(str(path), read_content(path, limit=_MAX_PICTURE))


def _unset(step: Step) -> Iterator[Edit]:
    keys = [_filled_in(parse_key(text), step) for text in step.texts("config-unset")]
    yield EditConfig(tuple(UnsetKey(key) for key in keys))


def _merge(step: Step) -> Iterator[Edit]:
    path = step.path("config-merge")
    content = given_bytes(read_content(path, limit=MAX_JSON), str(path))
    document = parse_document(content, str(path))
    yield EditConfig((MergeObject(document.content),))


def _remove_network(step: Step) -> Iterator[Edit]:
    for name in step.texts("network-rm"):
        yield RemoveNetwork(name)


_EDITS: Mapping[str, Callable[[Step], Iterator[Edit]]] = {
    "put": _put,
    "apply": _apply,
    "rm": _remove,
    "mkdir": _make_directory,
    "mv": _move,
    "use-internal": _use_internal,
    "splash": _splash,
    "config-unset": _unset,
    "config-merge": _merge,
    "wifi": wifi_edits,
    "ethernet": ethernet_edits,
    "keyfile": keyfile_edits,
    "network-rm": _remove_network,
}


def _assignments(step: Step) -> Iterator[ConfigStep]:
    for number, text in enumerate(step.texts("config-set")):
        with step.source.blamed((*step.key("config-set"), number)):
            yield _assignment(step, text)


def _assignment(step: Step, written: str) -> ConfigStep:
    """The change that ``written`` stands for.

    Variables are filled in once it has been taken apart, so that no value of one can name a file
    or another key.
    """
    assignment = parse_assignment(written)
    assignment = replace(assignment, key=_filled_in(assignment.key, step))
    name = format_key(assignment.key)
    if assignment.source == "-":
        raise ConfigError(
            f"{name}: a recipe cannot take it from standard input",
            code="recipe-source",
            hint=f"Take it from a file: {name}=@FILE",
        )
    if assignment.source is not None:
        path = step.local(step.variables.fill_in(assignment.source))
        return assignment.step(assignment.value_in(read_text(path), str(path)))
    secret = is_secret(assignment.key)
    text = step.variables.fill_in(assignment.text or "", secret=secret)
    value = assignment.value_in(text, name)
    if is_secret(assignment.key, value):
        step.source.refuse_shown_secret(assignment.text or "")
    return assignment.step(value)


def _filled_in(key: KeyPath, step: Step) -> KeyPath:
    return tuple(step.variables.fill_in(name) for name in key)
