"""Options that several commands share: about the image, the disk, and the edits of a recipe."""

from typing import TYPE_CHECKING

import click

from balenaflash.cli.arguments import OUT
from balenaflash.cli.session import Session, shared_option, with_options
from balenaflash.targets.safety import NO_PERMISSIONS, Permissions
from balenaflash.units import parse_size

if TYPE_CHECKING:
    _SizeType = click.ParamType[int]
else:
    _SizeType = click.ParamType  # generic since click 8.4

no_repair_option = shared_option(
    "--no-repair",
    is_flag=True,
    help="Refuse a damaged boot partition even if it can be repaired without loss.",
)

dry_run_option = shared_option(
    "-n", "--dry-run", is_flag=True, help="Show what would be done, without writing anything."
)

yes_option = shared_option(
    "-y", "--yes", is_flag=True, help="Skip the confirmation prompt. No safety check is skipped."
)

member_option = shared_option(
    "--member",
    metavar="NAME",
    help="The image to use from a zip file that holds several.",
)

allow_internal_option = shared_option(
    "--allow-internal",
    is_flag=True,
    help="Allow writing to a disk that is built in, virtual, or possibly the system's.",
)
_unmount_option = shared_option(
    "--unmount", is_flag=True, help="Unmount the disk's filesystems first."
)

edit_options = with_options(
    (
        shared_option(
            "-o",
            "--output",
            metavar="OUT",
            type=OUT,
            help="Write the edited image, raw, to the new file OUT; IMAGE is not changed.",
        ),
        # The name of --overwrite in earlier versions.
        shared_option("--overwrite-output", "overwrite", is_flag=True, hidden=True),
        dry_run_option,
        shared_option(
            "--show-secrets", is_flag=True, help="With --dry-run: show keys and passwords unmasked."
        ),
        shared_option(
            "--keep-fingerprint",
            is_flag=True,
            help="Do not update balenaos.fingerprint, which then no longer matches.",
        ),
        no_repair_option,
        yes_option,
        allow_internal_option,
        _unmount_option,
        shared_option("--overwrite", is_flag=True, help="Replace OUT if it exists."),
    )
)
"""Options of every command that edits the boot partition."""


class SizeType(_SizeType):
    """A size such as 1T, 500GB or a number of bytes."""

    name = "size"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Size in bytes; wrong usage if ``value`` is not a size."""
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


disk_options = with_options(
    (
        yes_option,
        allow_internal_option,
        _unmount_option,
        shared_option(
            "--fix-gpt",
            is_flag=True,
            help="On a disk larger than IMAGE, move the backup GPT to the end of the disk.",
        ),
        shared_option("--eject", is_flag=True, help="Power the disk off after a successful write."),
        shared_option(
            "--max-size",
            type=SizeType(),
            metavar="SIZE",
            help="Allow a disk of up to SIZE, such as 1T, 500GB or a number of bytes. "
            "[default: 256G]",
        ),
    )
)
"""Options of a command that writes whole disks."""


def permissions_of(session: Session) -> Permissions:
    """The refusals that options lift."""
    limit = NO_PERMISSIONS.max_size if session.max_size is None else session.max_size
    return Permissions(internal=session.allow_internal, unmount=session.unmount, max_size=limit)
