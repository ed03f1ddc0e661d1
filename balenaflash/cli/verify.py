"""``verify``: the read-back alone."""

from collections.abc import Mapping
from pathlib import Path

import click

from balenaflash.cli.answer import Answer
from balenaflash.cli.recipe_options import (
    chosen_recipe,
    recipe_lines,
    recipe_options,
    recipe_result,
)
from balenaflash.cli.session import Session, progress_option, with_session
from balenaflash.extent import format_size


@click.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@recipe_options
@progress_option
@with_session
def verify(
    session: Session,
    image: Path,
    target: Path,
    *,
    recipe: Path | None,
    steps: tuple[str, ...],
    variables: Mapping[str, str],
) -> Answer:
    """Compare TARGET, byte for byte, with IMAGE.

    TARGET is a block device or a file, read past the cache. What TARGET holds beyond the end
    of IMAGE is not looked at. With a recipe TARGET is compared with what `write` makes of IMAGE
    by it. The exit status is 0 where they are equal and 6 where they are not.

    \b
    Examples:
      balenaflash verify balena.img /dev/sdX
      balenaflash verify balena.img copy.img && echo equal
      balenaflash verify balena.img /dev/sdX --recipe bench.toml --var bench=7
    """
    from balenaflash.cli.interrupts import stop_at_next_block
    from balenaflash.cli.progress_display import progress_for
    from balenaflash.destination import open_for_comparison
    from balenaflash.editing import lay_over
    from balenaflash.image.opening import open_for_reading
    from balenaflash.planning import plan_write
    from balenaflash.verification import verify as compare

    edits = chosen_recipe(recipe, steps, variables)
    with open_for_reading(image) as opened:
        edited = lay_over(opened, edits.edits if edits else ())
        plan = plan_write(edited.source)
        with stop_at_next_block(session) as stop, open_for_comparison(target) as medium:
            comparison = compare(edited.source, medium, plan, progress_for(session), stop)
    comparison.require_equal(plan, str(target))
    size = comparison.bytes_read
    by_recipe = f" with the edits of {edits.path}" if edits else ""
    return Answer(
        {
            "target": str(target),
            "bytes_read_back": size,
            "equal": True,
            "recipe": recipe_result(edits, edited.changes),
        },
        [
            *recipe_lines(edits, edited.changes),
            f"{target}: equal to {image}{by_recipe}, {format_size(size)} compared",
        ],
        edited.warnings,
    )
