"""Lines of ``inspect`` about the boot files and the block map."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from balenaflash.cli.network_list import ssid_text
from balenaflash.cli.text import size_text

if TYPE_CHECKING:
    from balenaflash.commands.inspect import BmapReport, FilesReport
    from balenaflash.edits.fingerprint import FingerprintReport
    from balenaflash.edits.network import Network

_NAMED = 5  # paths named in a line; the others are counted


def files_lines(files: "FilesReport | None", *, exact: bool) -> list[str]:
    """How many files there are, whether they are the image's own, and the networks."""
    if files is None:
        return ["Files:      unknown"]
    largest = ""
    if files.largest is not None:
        size = size_text(files.largest.size, exact=exact)
        largest = f", the largest {files.largest.path} ({size})"
    lines = [f"Files:      {files.count}{largest}"]
    lines += [f"            {line}" for line in _fingerprint_lines(files.fingerprint)]
    if files.overwritten:
        lines.append(f"            the next host OS update replaces {_named(files.overwritten)}")
    return [*lines, f"Networks:   {_networks_text(files.networks)}"]


def _fingerprint_lines(report: "FingerprintReport | None") -> list[str]:
    if report is None:
        return ["no fingerprint"]
    if report.matches:
        return ["as in the fingerprint"]
    lines = [
        f"{what}: {_named(paths)}"
        for what, paths in (
            ("other than in the fingerprint", report.differing),
            ("in the fingerprint, and missing", report.missing),
            ("not in the fingerprint", report.new),
        )
        if paths
    ]
    if report.differing is None:
        lines.append("not compared with the fingerprint (--check-files does)")
    return lines


def _networks_text(networks: "Sequence[Network]") -> str:
    used = [_network_text(each) for each in networks if each.state == "used"]
    others = [each.state.value for each in networks if each.state != "used"]
    counts = [f"{state}: {others.count(state)}" for state in dict.fromkeys(others)]
    return "; ".join([*(used or ["none"]), *counts])


def _network_text(network: "Network") -> str:
    ssid = ssid_text(network.ssid)
    return f"{network.name} ({network.type}{'' if ssid is None else f', SSID {ssid}'})"


def bmap_lines(report: "BmapReport | None") -> list[str]:
    """Whether the block map beside the image is true of it; none without one."""
    if report is None:
        return []
    if report.fault is not None:
        return [f"Block map:  {report.fault}"]
    if report.differing is None:
        fact = "not compared with the image (--check-bmap does)"
    elif report.differing:
        start = report.differing[0].start
        fact = f"the image differs in {len(report.differing)} ranges, the first at byte {start}"
    else:
        fact = "true of the image"
    return [f"Block map:  {report.path}: {fact}"]


def _named(paths: Sequence[str]) -> str:
    more = len(paths) - _NAMED
    return ", ".join(paths[:_NAMED]) + (f" and {more} more" if more > 0 else "")
