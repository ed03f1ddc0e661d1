"""``sample``: a small image to try everything on."""

from pathlib import Path

import click

from balenaflash.cli.arguments import OUT
from balenaflash.cli.output import Answer
from balenaflash.cli.progress import progress_for
from balenaflash.cli.session import Session, progress_option, with_session
from balenaflash.commands.sample import build_sample
from balenaflash.units import format_size


@click.command()
@click.argument("out", type=OUT)
@click.option(
    "--table",
    type=click.Choice(["msdos", "gpt"]),
    default="gpt",
    show_default=True,
    help="Kind of partition table.",
)
@click.option(
    "--fat",
    "fat_bits",
    type=click.Choice(["16", "32"]),
    default="16",
    show_default=True,
    help="Kind of FAT of the boot partition.",
)
@click.option("--flasher", is_flag=True, help="A flasher, which carries a raw image.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@progress_option
@with_session
def sample(
    session: Session, out: Path, *, table: str, fat_bits: str, flasher: bool, overwrite: bool
) -> Answer:
    """Make OUT, a complete image of balenaOS layout with small contents.

    It has every partition and every file that balenaOS tools read, but no operating system. Use it
    to try this program, and scripts and readers with it, without a download.

    \b
    Examples:
      balenaflash sample sample.img
      balenaflash sample --table msdos --fat 32 sample.img
      balenaflash sample --flasher flasher.img
    """
    report = build_sample(
        out,
        table="msdos" if table == "msdos" else "gpt",
        fat_bits=32 if fat_bits == "32" else 16,
        progress=progress_for(session),
        flasher=flasher,
        overwrite=overwrite,
    )
    kind = "flasher" if flasher else "raw"
    result = {
        "path": str(report.path),
        "size": report.size,
        "kind": kind,
        "table": table,
        "fat_bits": int(fat_bits),
    }
    shown = f"{kind}, {table}, FAT{fat_bits} boot partition"
    return Answer(result, [f"{report.path}: {format_size(report.size)}, {shown}"])
