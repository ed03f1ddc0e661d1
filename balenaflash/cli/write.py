"""``write``: its options, its question, and its answer."""

import math
from collections.abc import Iterator, Sequence
from typing import Unpack

import click

from balenaflash.cli.arguments import IMAGE, TARGET
from balenaflash.cli.asking import (
    confirm_erasing,
    describe_content,
    describe_disk,
    indented,
    short_description,
)
from balenaflash.cli.image_options import (
    ImageOptions,
    choose_image,
    flasher_result,
    ignore_secure_boot_option,
    image_options,
)
from balenaflash.cli.options import disk_options, dry_run_option, permissions_of
from balenaflash.cli.output import Answer, say
from balenaflash.cli.progress import TargetsDisplay, progress_for
from balenaflash.cli.session import Session, progress_option, shared_option, with_session
from balenaflash.cli.signals import stop_at_next_block
from balenaflash.commands.write import (
    Destination,
    DiskDestination,
    Done,
    FileDestination,
    PreparedWrite,
    WriteRequest,
    prepare_write,
)
from balenaflash.durable import find_type
from balenaflash.edits.recipe.reading import Recipe
from balenaflash.errors import BalenaflashError
from balenaflash.flashing.flash import FlashOptions, FlashReport, Outcome
from balenaflash.flashing.plan import Tally, WritePlan
from balenaflash.formats.contents import Content
from balenaflash.source.location import ImageLocation
from balenaflash.targets.after_writing import Ending
from balenaflash.targets.disk_names import TargetName
from balenaflash.targets.disks import least_seconds
from balenaflash.units import Extent, format_size

_MINUTE = 60


def show_and_confirm(session: Session, prepared: PreparedWrite, recipe: Recipe | None) -> None:
    """Show image, targets, what is lost and what will be done, and ask once for all disks.

    Raises:
        TargetRefusedError: the answer was no, or there is nobody to answer.
    """
    if not session.quiet:
        # Without a question the warnings are shown once, at the end.
        warnings = () if session.yes else prepared.plan.warnings
        for line in _image_lines(prepared, recipe, warnings):
            say(line)
        for line in _destinations_lines(prepared):
            say(line)
    disks = [
        each.assessment.disk for each in prepared.destinations if isinstance(each, DiskDestination)
    ]
    confirm_erasing(disks, yes=session.yes)


def _image_lines(
    prepared: PreparedWrite, recipe: Recipe | None, warnings: Sequence[str]
) -> Iterator[str]:
    plan, member = prepared.plan, prepared.image.opened.member
    name = str(prepared.request.image.location)
    name = name if member is None else f"{member} in {name}"
    size = "at least " if plan.image_size is None else ""
    yield f"Image:   {name}, {size}{format_size(plan.least_size)}"
    if recipe is not None:
        yield f"Recipe:  {recipe.path}, {recipe.name}"
    for warning in warnings:
        yield f"Warning: {warning}"


def _destinations_lines(prepared: PreparedWrite) -> list[str]:
    """The targets, what is lost with them, and, once for all, what will be done."""
    destinations, plan = prepared.destinations, prepared.plan
    reads_back = prepared.request.options.read_back
    if len(destinations) == 1:
        return destination_lines(destinations[0], plan, reads_back=reads_back)
    disks = [each for each in destinations if isinstance(each, DiskDestination)]
    lines = [line for each in destinations for line in _short_lines(each)]
    if not disks:
        return lines
    nodes: dict[str, list[str]] = {}
    for each in disks:
        for text in _plan_texts(each, plan, reads_back=reads_back):
            nodes.setdefault(text, []).append(each.name)
    texts = [
        text if len(where) == len(disks) else f"{text} ({', '.join(where)})"
        for text, where in nodes.items()
    ]
    slowest = max(disks, key=lambda each: _seconds(each, plan, reads_back=reads_back) or math.inf)
    time = _time_text(slowest, plan, reads_back=reads_back)
    return [*lines, *indented("Plan:", texts), *indented("Time:", [time])]


def _short_lines(destination: Destination) -> list[str]:
    """One of several targets, and the content that is lost."""
    if not isinstance(destination, DiskDestination):
        return [_file_line(destination)]
    lost = "; ".join(describe_content(destination.assessment))
    facts = ", ".join(short_description(destination.assessment.disk))
    return indented("Target:", [facts, f"lost: {lost}"])


def _file_line(destination: FileDestination) -> str:
    is_new = find_type(destination.path) is None
    kind = "a new file" if is_new else "a file, whose content is lost"
    return f"Target:  {destination.name}, {kind}"


def destination_lines(destination: Destination, plan: WritePlan, *, reads_back: bool) -> list[str]:
    """The target, the content that is lost, and what will be done."""
    if not isinstance(destination, DiskDestination):
        return [_file_line(destination)]
    assessment = destination.assessment
    return [
        *describe_disk(assessment.disk),
        *indented("Lost:", describe_content(assessment)),
        *indented("Plan:", _plan_texts(destination, plan, reads_back=reads_back)),
        *indented("Time:", [_time_text(destination, plan, reads_back=reads_back)]),
    ]


def _plan_texts(
    destination: DiskDestination, plan: WritePlan, *, reads_back: bool
) -> Iterator[str]:
    disk = destination.assessment.disk
    if destination.assessment.mounts:
        yield "unmount what is mounted"
    left = plan.least_size - plan.size_to_write
    more = " or more" if plan.image_size is None else ""
    leaving = f", leave {format_size(left)} of free space" if left else ""
    if plan.free is None:
        leaving = ", less the free space of the image"
    yield f"write {format_size(plan.size_to_write)}{more}{leaving}; the first MiB last"
    if disk.size > plan.least_size:
        yield "wipe the backup of an earlier GPT at the end of the disk, if any"
    if destination.gpt_move:
        yield "move the backup GPT to the end of the disk"
    yield "read back all that was written" if reads_back else "do not read back (--no-verify)"


def _seconds(destination: DiskDestination, plan: WritePlan, *, reads_back: bool) -> float | None:
    """Seconds that the port of the disk needs at least; ``None`` if unknown."""
    if plan.free is None:
        return None
    amount = plan.size_to_write * (2 if reads_back else 1)
    return least_seconds(destination.assessment.disk, amount)


def _time_text(destination: DiskDestination, plan: WritePlan, *, reads_back: bool) -> str:
    seconds = _seconds(destination, plan, reads_back=reads_back)
    if seconds is None:
        return "unknown"
    minutes, rest = divmod(int(seconds), _MINUTE)
    amount = f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
    return f"at least {amount}, by the speed of USB port {destination.assessment.disk.usb_port}"


def plan_lines(prepared: PreparedWrite, tallies: Sequence[Tally]) -> list[str]:
    """The text of a dry run."""
    lines = _destinations_lines(prepared)
    lines.append(
        f"Bytes:   {format_size(prepared.plan.head.size)} at the start zeroed first, written last"
    )
    for tally in tallies:
        where = "outside" if tally.partition is None else f"partition {tally.partition}"
        counts = ", ".join(f"{format_size(size)} {kind}" for kind, size in tally.bytes.items())
        lines.append(f"         {where}: {counts or 'nothing'}")
    data, zero, free = (
        format_size(sum(tally.bytes.get(kind, 0) for tally in tallies)) for kind in Content
    )
    return [
        *lines,
        f"         write {data} of data and",
        f"         {zero} of zeros, leave {free} that is free",
        "Nothing was written (--dry-run).",
    ]


def done_lines(prepared: PreparedWrite, done: Sequence[Done]) -> list[str]:
    """Lines for each target that was written; the failures are shown as errors."""
    lines = []
    for destination, each in zip(prepared.destinations, done, strict=True):
        if isinstance(each.outcome, FlashReport):
            lines += _report_lines(destination.name, each.outcome)
            lines += [] if each.ending is None else _ending_lines(destination.name, each.ending)
    return lines


def _ending_lines(name: str, ending: Ending) -> list[str]:
    settled = ending.settled
    if settled.is_current:
        nodes = ", ".join(each.node.name for each in settled.partitions)
        seen = f"the kernel shows its partitions: {nodes}"
    elif settled.is_scanned:
        seen = "the kernel does not show its partitions; plug it in again to use them here"
    else:
        seen = "the kernel does not scan it for partitions"
    return [f"{name}: {seen}", f"{name}: {left_text(ending)}"]


def left_text(ending: Ending) -> str:
    """Words about removing the disk."""
    if ending.ejected:
        return "is powered off and may be unplugged"
    if ending.stays_on is None:
        return "safe to remove"
    return f"safe to remove; not powered off: {ending.stays_on}"


def _report_lines(name: str, report: FlashReport) -> list[str]:
    texts = [_speed("written", report.bytes_written, report.write_seconds)]
    is_read_back = report.bytes_read_back is not None
    if report.bytes_equal:
        when = "" if is_read_back or not report.bytes_written else ", before the rest was written"
        texts.append(f"{format_size(report.bytes_equal)} already up to date{when}")
    if report.bytes_read_back is None or report.verify_seconds is None:
        texts.append("nothing was read back (--no-verify)")
    else:
        texts.append(_speed("read back equal", report.bytes_read_back, report.verify_seconds))
    by_reader = "the reader or the cable is not reliable"
    facts = [
        ", ".join(texts),
        *(
            f"read back wrong from byte {each.extent.start} to {each.extent.end}; "
            "rewritten, and right since then"
            for each in report.repaired
        ),
    ]
    optional = (
        (report.wiped, "the backup of an earlier GPT at the end of the disk was wiped"),
        (report.gpt_moved, "the backup GPT was moved to the end of the disk"),
        (
            report.failed_reads,
            f"{report.failed_reads} reads failed and succeeded when repeated: {by_reader}",
        ),
        (
            report.unsteady_reads,
            f"{report.unsteady_reads} reads were wrong and right when repeated: {by_reader}",
        ),
    )
    return [f"{name}: {fact}" for fact in (*facts, *(text for holds, text in optional if holds))]


def _speed(word: str, size: int, seconds: float) -> str:
    rate = format_size(int(size / max(seconds, 1e-6)))
    return f"{format_size(size)} {word} in {seconds:.1f} s ({rate}/s)"


def write_result(
    prepared: PreparedWrite, done: Sequence[Done] | None, tallies: Sequence[Tally]
) -> dict[str, object]:
    """The result for scripts; with one target its keys stand at the top as well.

    ``done`` is ``None`` for a dry run.
    """
    ends: Sequence[Done | None] = done or [None] * len(prepared.destinations)
    targets = [
        _target_result(destination, end)
        for destination, end in zip(prepared.destinations, ends, strict=True)
    ]
    first = targets[0] if len(targets) == 1 else {}
    return {
        **first,
        "dry_run": done is None,
        "image_size": prepared.plan.image_size,
        "plan": [
            {
                "partition": tally.partition,
                **{kind.value: size for kind, size in tally.bytes.items()},
            }
            for tally in tallies
        ],
        "targets": targets,
    }


def _target_result(destination: Destination, done: Done | None) -> dict[str, object]:
    """The outcome for one target; the state of the disk is left out if it failed."""
    report = None if done is None else done.outcome
    if isinstance(report, BalenaflashError):
        return {
            "target": destination.name,
            "error": report.code,
            "exit_status": report.exit_status,
        }
    ending = None if done is None else done.ending
    return {
        "target": destination.name,
        "exit_status": 0,
        "bytes_written": report.bytes_written if report else 0,
        "bytes_equal": report.bytes_equal if report else 0,
        "bytes_read_back": report.bytes_read_back if report else None,
        "write_seconds": report.write_seconds if report else None,
        "verify_seconds": report.verify_seconds if report else None,
        "repaired": _extents_result([each.extent for each in report.repaired] if report else []),
        "unsteady_reads": report.unsteady_reads if report else 0,
        "failed_reads": report.failed_reads if report else 0,
        "wiped": _extents_result(report.wiped if report else ()),
        "gpt_moved": report is not None and report.gpt_moved,
        "partitions": None if ending is None else _partitions_result(ending),
        "safe_to_remove": None if ending is None else True,
        "ejected": None if ending is None else ending.ejected,
    }


def _extents_result(extents: Sequence[Extent]) -> list[dict[str, object]]:
    return [{"start": each.start, "size": each.size} for each in extents]


def _partitions_result(ending: Ending) -> list[dict[str, object]] | None:
    """The partitions that the kernel shows; ``None`` if those are not the new ones."""
    if not ending.settled.is_current:
        return None
    return [
        {"node": str(each.node), "number": each.number, "start": each.start, "size": each.size}
        for each in ending.settled.partitions
    ]


@click.command()
@click.argument("image", type=IMAGE)
@click.argument(
    "targets",
    metavar="TARGET...",
    type=TARGET,
    nargs=-1,
    required=True,
)
@click.option("--no-verify", is_flag=True, help="Do not read back what was written.")
@click.option(
    "--all",
    "writes_all",
    is_flag=True,
    help="Write every byte, including free space of the filesystems of IMAGE.",
)
@click.option(
    "--skip-equal",
    is_flag=True,
    help=(
        "Read TARGET first, write only what differs, and read everything back; faster for a card "
        "that already had this image."
    ),
)
@click.option(
    "--unwrap",
    "unwraps",
    is_flag=True,
    help="Write the image that the flasher IMAGE carries, as the flasher would leave it.",
)
@ignore_secure_boot_option
@disk_options
@shared_option("--overwrite", is_flag=True, help="Allow a TARGET that is an existing file.")
@image_options
@dry_run_option
@progress_option
@with_session
def write(
    session: Session,
    image: ImageLocation,
    targets: tuple[TargetName, ...],
    *,
    no_verify: bool,
    writes_all: bool,
    skip_equal: bool,
    unwraps: bool,
    **options: Unpack[ImageOptions],
) -> Answer:
    """Write IMAGE to each TARGET, read it back, and compare.

    IMAGE is a file, raw or compressed (gzip, xz, bzip2, zstd, zip), a block device, - for standard
    input, or an http(s) address. TARGET is a whole block device or the name of a file, which is
    created. A device is named by its node, by a link such as /dev/disk/by-id/..., or by serial:S,
    port:P or slot:NAME (see devices name --help). Everything on TARGET is lost.
    With a recipe its edits are made in what is written, and IMAGE stays as it is; see balenaflash
    edit --help.

    \b
    Examples:
      balenaflash devices
      balenaflash write balena.img /dev/disk/by-id/usb-SanDisk_Ultra_4C5300-0:0
      balenaflash write balena.img.gz /dev/sdX serial:4C5300 port:1-2.3 slot:left
      balenaflash write --yes --progress json balena.img /dev/sdX
      balenaflash write --unmount --fix-gpt --eject balena.img /dev/sdX
      balenaflash write balena.img.zip copy.img
      balenaflash write balena.img /dev/sdX --recipe bench.toml --var bench=7
      balenaflash write balena.img /dev/sdX --step 'config-set = "hostname=bench-7"'
    """
    chosen = choose_image(session, image, options, unwrap=unwraps)
    request = WriteRequest(
        chosen.request,
        targets,
        permissions_of(session),
        overwrite=session.overwrite,
        write_all=writes_all,
        fix_gpt=session.fix_gpt,
        options=FlashOptions(read_back=not no_verify, skip_equal=skip_equal),
        eject=session.eject,
    )
    with prepare_write(request) as prepared:
        if session.dry_run:
            done, tallies = None, prepared.count(progress_for(session))
        else:
            show_and_confirm(session, prepared, chosen.recipe)
            for point in prepared.unmount():
                if not session.quiet:
                    say(f"Unmounted {point}")
            done, tallies = _run(session, prepared), ()
    wanted = prepared.image
    outcomes = [each.outcome for each in done or ()]
    lines = [
        *chosen.lines(wanted),
        *(plan_lines(prepared, tallies) if done is None else done_lines(prepared, done)),
    ]
    result = write_result(prepared, done, tallies)
    result["flasher"] = flasher_result(wanted.unwrapping)
    result |= chosen.result(wanted)
    warnings = tuple(dict.fromkeys((*chosen.warnings, *prepared.warnings)))
    return Answer(result, lines, warnings, failures=_failures(outcomes))


def _run(session: Session, prepared: PreparedWrite) -> list[Done]:
    display = TargetsDisplay(session, [each.name for each in prepared.destinations])

    def finished(number: int, done: Done) -> None:
        if isinstance(done.outcome, BalenaflashError):
            display.finish(
                number, done.outcome.exit_status, "failed; the reason follows at the end"
            )
        else:
            left = "" if done.ending is None else f", {left_text(done.ending)}"
            display.finish(number, 0, f"done{left}")

    with stop_at_next_block(session) as stop:
        return prepared.run(display.each, stop, finished)


def _failures(outcomes: Sequence[Outcome]) -> list[BalenaflashError]:
    """The failures of several targets; the failure of a single target is raised.

    Raises:
        BalenaflashError: the only target failed.
    """
    failures = [each for each in outcomes if isinstance(each, BalenaflashError)]
    if failures and len(outcomes) == 1:
        raise failures[0]
    return failures
