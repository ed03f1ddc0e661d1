"""What is told of a flasher that is unwrapped, and the options that say how."""

from typing import TYPE_CHECKING

import click

from balenaflash.units import format_size

if TYPE_CHECKING:
    from balenaflash.commands.flasher_steps import Step
    from balenaflash.commands.unwrap import UnwrapPlan

ignore_secure_boot_option = click.option(
    "--ignore-secure-boot",
    is_flag=True,
    help="Go on where config.json asks the flasher for secure boot and an encrypted disk; "
    "there will be neither.",
)


def flasher_lines(plan: "UnwrapPlan") -> list[str]:
    """What people get of a flasher that is unwrapped: what it carries, and each of its steps."""
    size = plan.inner.source.size
    version = plan.flasher.os_version or "unknown"
    shown = "size unknown" if size is None else format_size(size)
    devices = " or ".join(plan.expected_devices) or "unknown"
    return [
        f"Carries:  {plan.flasher.image_name}, {shown}, OS version {version}",
        f"For:      {plan.slug or 'an unknown board'}, disk {devices}",
        *(line for step in plan.steps for line in _step_lines(step)),
    ]


def flasher_result(plan: "UnwrapPlan") -> dict[str, object]:
    """What scripts get of it."""
    return {
        "inner_image": plan.flasher.image_path,
        "size": plan.inner.source.size,
        "slug": plan.slug,
        "os_version": plan.flasher.os_version,
        "expected_devices": list(plan.expected_devices),
        "steps": [
            {
                "code": step.code,
                "action": step.action,
                "state": step.state.value,
                "meaning": step.meaning,
            }
            for step in plan.steps
        ],
    }


_MARK_WIDTH = len("done by unwrap")


def _step_lines(step: "Step") -> list[str]:
    mark = step.state.value.replace("-", " ").ljust(_MARK_WIDTH)
    lines = [f"  {mark}  {step.action}"]
    if step.meaning is not None:
        lines.append(f"  {' ' * _MARK_WIDTH}  {step.meaning}")
    return lines
