"""How fast this program means to be, as ratios to its peers in the same run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from measuring import Cost

OURS = "balenaflash"
WHOLE = "balenaflash --all"
WRITE = "write"
READ_BACK = "write, read back"


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured together."""

    container: str
    mode: str
    targets: int
    is_slow: bool
    """Whether the device is one of a given, low speed."""


Results = Mapping[Case, Mapping[str, Cost]]
"""Medians by case and by name of the tool."""


@dataclass(frozen=True, slots=True)
class Limit:
    """``ours``, writing and reading back, takes at most ``most`` of what ``peer`` takes."""

    container: str
    ours: str
    peer: str
    peer_mode: str
    most: float
    figure: str = "wall"


LIMITS = (
    Limit("raw", OURS, "etcher-sdk, trim", READ_BACK, 0.45),
    Limit("raw", OURS, "balena local flash", READ_BACK, 0.4),
    Limit("raw", OURS, "rpi-imager --cli", READ_BACK, 0.35),
    Limit("raw", OURS, "bmaptool --bmap", WRITE, 1.0),
    Limit("raw", WHOLE, "dd direct, cmp", READ_BACK, 0.9),
    Limit("raw", OURS, "dd direct, xxhsum", READ_BACK, 1.0, "cpu"),
    *(
        limit
        for container in ("gz", "zip")
        for limit in (
            Limit(container, OURS, "etcher-sdk", READ_BACK, 0.45),
            Limit(container, OURS, "rpi-imager --cli", READ_BACK, 0.45),
            Limit(container, OURS, "bmaptool --bmap", WRITE, 1.0),
        )
    ),
    Limit("xz", OURS, "bmaptool --bmap", WRITE, 0.6),
    Limit("xz of one block", OURS, "bmaptool --bmap", WRITE, 1.0),
    Limit("zst", OURS, "bmaptool --bmap", WRITE, 1.0),
    Limit("bz2", OURS, "bmaptool --bmap", WRITE, 0.65),
)

MEMORY = {1: 120, 16: 250}
"""MiB that a run may take at most, by number of targets."""

SLOWNESS = 1.03
"""Of the time that a device of known speed needs for the bytes alone."""


def rows(results: Results, floor: Callable[[Cost], float]) -> list[str]:
    """A row of a table for each limit that these results can be held to.

    ``floor`` gives the seconds that a slow device needs for the bytes of a run.
    """
    found = [row for limit in LIMITS for row in _ratio(limit, results)]
    for case, costs in results.items():
        if (cost := costs.get(OURS)) is None:
            continue
        what = f"{case.container}, {case.mode}, {case.targets} targets"
        if (most := MEMORY.get(case.targets)) is not None:
            found.append(_row(f"{what}: MiB of memory", cost.peak, most))
        if case.is_slow and case.targets == 1:
            found.append(_row(f"{what}: device's own time", cost.wall / floor(cost), SLOWNESS))
    return found


def _ratio(limit: Limit, results: Results) -> list[str]:
    ours = results.get(Case(limit.container, READ_BACK, 1, is_slow=False), {}).get(limit.ours)
    peers = results.get(Case(limit.container, limit.peer_mode, 1, is_slow=False), {})
    if ours is None or (peer := peers.get(limit.peer)) is None:
        return []
    ratio = getattr(ours, limit.figure) / getattr(peer, limit.figure)
    what = f"{limit.container}: {limit.figure} of {limit.ours}, {READ_BACK}"
    return [_row(f"{what}, to {limit.peer}, {limit.peer_mode}", ratio, limit.most)]


def _row(what: str, value: float, most: float) -> str:
    return f"| {what} | {value:.2f} | {most:g} | {'yes' if value <= most else 'NO'} |"
