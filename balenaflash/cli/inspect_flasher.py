"""Lines of ``inspect`` about signatures, and about what a flasher carries and does."""

import textwrap
from typing import TYPE_CHECKING

from balenaflash.cli.text import known, size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balenaflash.balena.signature import SignatureReport
    from balenaflash.commands.flasher_steps import Step
    from balenaflash.commands.inspect import CarriedReport

_INDENT = " " * 12
_MIN_WIDTH = 40
_MARKS = {
    "done-by-unwrap": "done by unwrap",
    "needs-board": "needs the board",
    "not-needed": "not needed",
}
"""What becomes of a step, by the values of `balenaflash.commands.flasher_steps.StepState`."""


def signature_lines(report: "SignatureReport", title: str = "Signature:  ") -> list[str]:
    """Whether there is one, and what is known of it."""
    if report.path is None:
        return [f"{title}none" if report.reason is None else f"{title}unknown: {report.reason}"]
    lines = [f"{title}{report.path}: {_signature_text(report)}"]
    if report.subject is not None:
        lines.append(f"{_INDENT}certificate: {report.subject}, SHA-256 {report.sha256}")
    if report.odd_time is not None:
        lines.append(f"{_INDENT}the certificate is not valid now: {report.odd_time}")
    return lines


def _signature_text(report: "SignatureReport") -> str:
    from balenaflash.balena.signature import SignatureState

    reason = "" if report.reason is None else f": {report.reason}"
    match report.state:
        case SignatureState.NOT_CHECKED:
            return "not checked (--check-signature does)"
        case SignatureState.SELF_SIGNED:
            return (
                f"self-signed, by {report.certificate.name if report.certificate else ''}, "
                "which whoever changes the image can change too (--certificate takes yours)"
            )
        case SignatureState.VERIFIED:
            return f"verifies against {report.certificate.name if report.certificate else ''}"
        case SignatureState.WRONG:
            return f"does not verify{reason}"
        case _:
            return f"unknown{reason}"


def carried_lines(carried: "CarriedReport | None", *, exact: bool) -> list[str]:
    """Which image a flasher carries, and where it would go."""
    if carried is None:
        return []
    flasher, layout = carried.flasher, carried.layout
    size = flasher.image.size
    shown = "size unknown" if size is None else size_text(size, exact=exact)
    place = f"partition {flasher.partition.number}"
    lines = ["", f"Carries:    {flasher.image_path} in {place}, {shown}"]
    if layout is not None:
        facts = layout.facts
        lines.append(
            f"{_INDENT}{known(facts.name)} ({known(facts.slug)}, {known(facts.arch)}), "
            f"OS version {known(facts.os_version)}"
        )
    devices = " ".join(carried.devices) or "none is named"
    if len(carried.devices) > 1:
        devices = f"the first that the board has of {devices}"
    return [
        *lines,
        *signature_lines(carried.signature, f"{_INDENT}signature: "),
        f"Goes to:    {devices}",
    ]


def step_lines(steps: "Sequence[Step] | None", width: int) -> list[str]:
    """What a flasher does on its board, each step with what becomes of it in an image."""
    if steps is None:
        return ["What it does on the board: unknown"]
    lines = ["What it does on the board, and what becomes of that in an image (unwrap):"]
    columns = max(map(len, _MARKS.values())) + 4
    for step in steps:
        text = step.action if step.meaning is None else f"{step.action} {step.meaning}"
        lines += textwrap.wrap(
            text,
            max(_MIN_WIDTH, width),
            initial_indent=f"  {_MARKS[step.state.value].ljust(columns - 2)}",
            subsequent_indent=" " * columns,
        )
    return lines
