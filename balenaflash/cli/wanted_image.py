"""The image that ``write`` and ``verify`` speak of: as it was opened, unwrapped, or edited."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from balenaflash.edits.files import FileChange
    from balenaflash.edits.recipe.reading import Recipe
    from balenaflash.formats.fat.check import Fault
    from balenaflash.source.base import Source
    from balenaflash.source.commit import ReadableImage


@dataclass(frozen=True, slots=True)
class WantedImage:
    """What a target is to hold, and what was done to the image for it."""

    source: "Source"
    changes: "tuple[FileChange, ...]"
    """Of the boot partition, by the recipe."""

    repairs: "tuple[Fault, ...]"
    """What was wrong with the boot partition, and was repaired before its edits."""

    warnings: tuple[str, ...]
    lines: list[str]
    """What people get of the flasher that was unwrapped."""

    flasher: dict[str, object] | None
    """What scripts get of it."""

    adds_secrets: bool = False
    """Whether the edits put a secret there that was not there before."""


def wanted_image(
    opened: "ReadableImage",
    recipe: "Recipe | None",
    *,
    unwraps: bool,
    ignore_secure_boot: bool,
    repair: bool,
) -> WantedImage:
    """The image that ``opened`` carries or is, with the edits of ``recipe`` laid in.

    Raises:
        ImageError: it is not an image of balenaOS layout, or no flasher.
        EditError: an edit cannot be made.
    """
    edits = recipe.edits if recipe else ()
    if unwraps:
        from balenaflash.cli.unwrap_answer import flasher_lines, flasher_result
        from balenaflash.commands.unwrap import lay_over_unwrapped

        inner = lay_over_unwrapped(
            opened, edits, ignore_secure_boot=ignore_secure_boot, repair=repair
        )
        edited, plan = inner.edited, inner.plan
        return WantedImage(
            edited.source,
            edited.changes,
            edited.repairs,
            edited.warnings,
            flasher_lines(plan),
            flasher_result(plan),
            edited.adds_secrets,
        )
    if not edits:
        # All that edits is loaded only where something is to be edited.
        return WantedImage(opened.source, (), (), opened.warnings, [], None)
    from balenaflash.commands.edit import lay_over

    laid_over = lay_over(opened, edits, repair=repair)
    return WantedImage(
        laid_over.source,
        laid_over.changes,
        laid_over.repairs,
        laid_over.warnings,
        [],
        None,
        laid_over.adds_secrets,
    )
