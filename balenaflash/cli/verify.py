"""``verify``: the read-back alone."""

from pathlib import Path

import click

from balenaflash.cli.answer import Answer
from balenaflash.cli.session import Session, progress_option, with_session
from balenaflash.extent import format_size


@click.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@progress_option
@with_session
def verify(session: Session, image: Path, target: Path) -> Answer:
    """Compare TARGET, byte for byte, with IMAGE.

    TARGET is a block device or a file, read past the cache. What TARGET holds beyond the end
    of IMAGE is not looked at. The exit status is 0 where they are equal and 6 where they are
    not.

    \b
    Examples:
      balenaflash verify balena.img /dev/sdX
      balenaflash verify balena.img copy.img && echo equal
    """
    from balenaflash.cli.interrupts import stop_at_next_block
    from balenaflash.cli.progress_display import progress_for
    from balenaflash.destination import open_for_comparison
    from balenaflash.image.opening import open_for_reading
    from balenaflash.planning import plan_write
    from balenaflash.verification import verify as compare

    with open_for_reading(image) as opened:
        plan = plan_write(opened.source)
        with stop_at_next_block(session) as stop, open_for_comparison(target) as medium:
            comparison = compare(opened.source, medium, plan, progress_for(session), stop)
    comparison.require_equal(plan, str(target))
    size = comparison.bytes_read
    return Answer(
        {"target": str(target), "bytes_read_back": size, "equal": True},
        [f"{target}: equal to {image}, {format_size(size)} compared"],
        opened.warnings,
    )
