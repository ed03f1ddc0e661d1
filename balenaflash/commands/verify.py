"""Compare a target with an image, byte for byte."""

from dataclasses import dataclass

from balenaflash.commands.wanted import WantedImage
from balenaflash.commands.write import open_for_comparison, plan_image
from balenaflash.flashing.disk_end import lay_move_over, plan_gpt_move, require_moved
from balenaflash.flashing.read_back import verify as compare
from balenaflash.progress import Progress, Stop
from balenaflash.targets.disk_names import TargetName


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """A target that holds the image."""

    bytes_read_back: int
    failed_reads: int
    """Reads of the target that failed once and then succeeded."""

    unsteady_reads: int
    """Reads of the target that gave something else once."""

    warnings: tuple[str, ...]


def verify(
    image: WantedImage,
    target: TargetName,
    *,
    compare_all: bool = False,
    fix_gpt: bool = False,
    progress: Progress,
    stop: Stop,
) -> VerifyReport:
    """Compare ``target``, read past the page cache, with ``image``.

    ``compare_all`` includes what is free in the filesystems of the image; with ``fix_gpt`` the
    backup GPT is expected at the end of the target.

    Raises:
        ImageError: the image cannot be read, or has no valid partition table.
        TargetRefusedError: the target is missing, or may not be read.
        VerificationError: the target differs.
    """
    plan = plan_image(image.edited.image, write_all=compare_all)
    with open_for_comparison(target) as medium:
        move = plan_gpt_move(image.edited.source, plan.table, medium.size) if fix_gpt else ()
        source = lay_move_over(image.edited.source, move)
        comparison = compare(source, medium, plan, progress, stop)
        comparison.require_equal(source, str(target))
        require_moved(medium, move)
        rereads = medium.rereads
    warnings = (*image.warnings, *plan.warnings, *rereads.warnings(str(target)))
    return VerifyReport(comparison.bytes_read, rereads.failed, rereads.differing, warnings)
