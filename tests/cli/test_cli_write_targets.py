"""``write`` to several targets: each at its own pace, and each with its own end."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from builders import BuiltImage, Layout
from commandline import RunBalenaflash, clean_environment
from fakes import MemorySource
from faultdev import Beyond, FaultDevice, MakeFaultDevice, write_error
from imagecopies import MakeImage
from write_judges import differing_bytes, free_extents

from balenaflash.flashing.flash import FlashOptions, FlashReport, Outcome, Target, flash
from balenaflash.flashing.plan import WritePlan
from balenaflash.formats.partitions.model import PartitionTable, TableKind
from balenaflash.progress import NO_PROGRESS
from balenaflash.targets.disks import find_disk
from balenaflash.targets.open_disk import open_disk
from balenaflash.units import MIB

SIZE = 64 * MIB
TARGET_KEYS = {
    "target",
    "exit_status",
    "bytes_written",
    "bytes_equal",
    "bytes_read_back",
    "write_seconds",
    "verify_seconds",
    "repaired",
    "unsteady_reads",
    "wiped",
    "gpt_moved",
    "failed_reads",
    "partitions",
    "safe_to_remove",
    "ejected",
}


def rounded(size: int) -> int:
    return -(-size // MIB) * MIB


@pytest.fixture
def gpt(image: MakeImage) -> BuiltImage:
    return image(Layout.GPT_FAT16)


def flash_all(
    content: bytes, devices: Sequence[FaultDevice], *, may_be_fake: bool = False
) -> tuple[Outcome, ...]:
    plan = WritePlan(len(content), PartitionTable(TableKind.MSDOS, 512, "0x0", (), ()))
    with ExitStack() as stack:
        media = [stack.enter_context(open_disk(find_disk(device.node))) for device in devices]
        return flash(
            MemorySource(content),
            plan,
            [Target(medium, NO_PROGRESS, may_be_fake=may_be_fake) for medium in media],
            options=FlashOptions(),
            stop=lambda: False,
        )


def seconds(outcome: Outcome) -> float:
    assert isinstance(outcome, FlashReport), outcome
    return outcome.write_seconds + (outcome.verify_seconds or 0)


def test_a_slow_target_does_not_slow_the_others(fault_device: MakeFaultDevice) -> None:
    content = random.Random(2).randbytes(SIZE)  # noqa: S311 - no key
    devices = [fault_device(size=SIZE) for _ in range(4)]
    for device in devices:
        device.set(write_bps=64 * MIB)
    devices[3].set(write_bps=16 * MIB)
    *fast, slow = map(seconds, flash_all(content, devices))
    assert slow > 3, "its medium needs four seconds, less what it buffers"
    # 1 s of writing each; a machine of few cores reads back at what speed it can.
    assert max(fast) < slow * 0.75
    for device in devices:
        assert device.raw(0, SIZE) == content


def test_a_target_that_fails_leaves_the_others_alone(
    gpt: BuiltImage, fault_device: MakeFaultDevice, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    size = rounded(gpt.path.stat().st_size)
    bad, good, gone = (fault_device(size=size) for _ in range(3))
    place = gpt.partitions[2].extent.start + 1024  # a superblock, about half-way
    bad.set(faults=[write_error(start=place, end=place + 512)])
    gone.set(vanish_after=2 * MIB)
    copy = tmp_path / "copy.img"
    run = balenaflash("write", "--yes", "--json", gpt.path, bad.node, good.node, copy, gone.node)
    assert run.returncode == 5, run.stderr
    envelope = json.loads(run.stdout)
    assert (envelope["status"], envelope["exit_status"]) == ("error", 5)
    targets = {each["target"]: each for each in envelope["result"]["targets"]}
    assert list(targets) == [str(each) for each in (bad.node, good.node, copy, gone.node)]
    assert targets[str(bad.node)]["error"] == targets[str(gone.node)]["error"] == "write-failed"
    assert set(targets[str(good.node)]) == set(targets[str(copy)]) == TARGET_KEYS
    messages = [error["message"] for error in envelope["errors"]]
    assert len(messages) == 2
    assert all("had been written, it holds part of the image" in each for each in messages)
    assert "vanished" in messages[1]
    assert differing_bytes(gpt.path, good.node, free_extents(gpt, gpt.path)) == []
    assert differing_bytes(gpt.path, copy, free_extents(gpt, gpt.path)) == []
    assert not any(bad.raw(0, MIB))
    for node in (bad.node, good.node, gone.node):
        assert str(node) in run.stderr


@pytest.mark.needs("root")
def test_only_the_file_that_is_unfinished_is_removed(
    gpt: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "none", small], check=True)
    try:
        good = tmp_path / "good.img"
        run = balenaflash("write", gpt.path, small / "bad.img", good)
        assert (run.returncode, run.stdout) == (5, ""), run.stderr
        assert "the unfinished file is removed" in run.stderr
        assert f"{good}: " in run.stderr
        assert list(small.iterdir()) == []
        assert differing_bytes(gpt.path, good, []) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_every_target_has_its_events_and_a_single_one_has_no_name(
    gpt: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    names = [str(tmp_path / "one"), str(tmp_path / "two")]
    run = balenaflash("write", "--progress", "json", "--quiet", gpt.path, *names)
    assert run.returncode == 0, run.stderr
    events = [json.loads(line) for line in run.stderr.splitlines()]
    size = gpt.path.stat().st_size
    for name in names:
        own = [event for event in events if event["target"] == name]
        ends = [
            (each["phase"], each["done"], each["total"]) for each in own if each["event"] == "end"
        ]
        assert ends == [("write", size, size), ("verify", size, size)]
    run = balenaflash("write", "--progress", "json", "--quiet", gpt.path, tmp_path / "three")
    events = [json.loads(line) for line in run.stderr.splitlines()]
    assert all("target" not in event for event in events)


def test_the_keys_of_one_target_stand_at_the_top_as_well(
    gpt: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    result = json.loads(balenaflash("write", "--json", gpt.path, one).stdout)["result"]
    shared = {"dry_run", "image_size", "plan", "targets", "recipe", "warnings"}
    assert set(result) >= TARGET_KEYS | shared
    assert {key: result[key] for key in TARGET_KEYS} == result["targets"][0]
    result = json.loads(balenaflash("write", "--json", gpt.path, two, three).stdout)["result"]
    assert set(result) >= shared
    assert TARGET_KEYS.isdisjoint(result), "whose would they be"
    assert [each["target"] for each in result["targets"]] == [str(two), str(three)]


def test_the_same_target_twice_and_each_that_is_missing_are_refused_at_once(
    gpt: BuiltImage, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    one = tmp_path / "one"
    other = tmp_path / "." / "one"
    run = balenaflash(
        "write", "--yes", "--json", gpt.path, one, f"{tmp_path}/../{tmp_path.name}/one", "/dev/nix"
    )
    assert run.returncode == 4
    codes = [error["code"] for error in json.loads(run.stdout)["errors"]]
    assert sorted(codes) == ["target-missing", "target-repeated"]
    assert not other.exists()


def start(gpt: BuiltImage, devices: Sequence[FaultDevice], *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "balenaflash", "write", "--yes", *options, str(gpt.path)]
    return subprocess.Popen(
        [*command, *(str(device.node) for device in devices)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean_environment(),
        text=True,
    )


def test_a_device_that_fails_at_its_first_write_is_not_said_to_hold_part_of_the_image(
    gpt: BuiltImage, fault_device: MakeFaultDevice, balenaflash: RunBalenaflash
) -> None:
    device = fault_device(size=rounded(gpt.path.stat().st_size))
    device.set(faults=[write_error(0, MIB)])
    run = balenaflash("write", "--yes", gpt.path, device.node)
    assert (run.returncode, run.stdout) == (5, "")
    assert "; none of the image was written" in run.stderr
    assert "0 B had been written" not in run.stderr
    assert "holds part" not in run.stderr


def wait_for(device: FaultDevice, written: int) -> None:
    deadline = time.monotonic() + 30
    while device.stats().bytes_written < written:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_interrupt_ends_the_work_on_all_targets(
    gpt: BuiltImage, fault_device: MakeFaultDevice
) -> None:
    devices = [fault_device(size=rounded(gpt.path.stat().st_size)) for _ in range(2)]
    for device in devices:
        device.set(write_bps=2 * MIB)
    process = start(gpt, devices)
    wait_for(devices[0], 3 * MIB // 2)
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=60)
    assert (process.returncode, out) == (-signal.SIGINT, "")
    for device in devices:
        assert f"balenaflash: {device.node}: interrupted after" in said
        assert not any(device.raw(0, MIB))


def test_a_second_interrupt_ends_it_at_once(gpt: BuiltImage, fault_device: MakeFaultDevice) -> None:
    device = fault_device(size=rounded(gpt.path.stat().st_size))
    device.set(write_bps=MIB // 4)
    process = start(gpt, [device])
    # The zeros of the head are on it, and the files of the boot partition are under way.
    wait_for(device, MIB + 1)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _out, said = process.communicate(timeout=60)
    device.set()
    assert process.returncode == -signal.SIGINT
    assert f"{device.node}: left before the work on it had ended" in said
    # All of the image would take half a minute; a request that the kernel has is waited for.
    assert time.monotonic() - started < 15


def test_a_user_who_leaves_hears_which_cards_are_done(
    gpt: BuiltImage, fault_device: MakeFaultDevice
) -> None:
    done, slow = (fault_device(size=rounded(gpt.path.stat().st_size)) for _ in range(2))
    slow.set(write_bps=MIB // 4)
    command = [sys.executable, "-m", "balenaflash", "write", "--yes", "--json"]
    process = subprocess.Popen(
        [*command, gpt.path, done.node, slow.node],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )
    # Its first MiB comes last, and the read-back takes no longer than this.
    deadline = time.monotonic() + 60
    while not any(done.raw(0, MIB)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=60)
    slow.set()
    assert process.returncode == -signal.SIGINT
    envelope = json.loads(out)
    assert envelope["exit_status"] == 128 + signal.SIGINT
    assert [each["exit_status"] for each in envelope["result"]["targets"]] == [0, 5]
    (error,) = envelope["errors"]
    assert error["message"].startswith(f"{slow.node}: left before the work on it had ended")
    assert f"{done.node}: left" not in said


@pytest.mark.parametrize("beyond", list(Beyond))
@pytest.mark.parametrize("real_size", [1, 4 * MIB + 8192])
def test_a_counterfeit_card_is_called_a_fake(
    fault_device: MakeFaultDevice, beyond: Beyond, real_size: int
) -> None:
    content = random.Random(4).randbytes(32 * MIB)  # noqa: S311 - no key
    device = fault_device(size=32 * MIB)
    device.set(real_size=8 * MIB if real_size == 1 else real_size, beyond=beyond)
    (outcome,) = flash_all(content, [device])
    assert not isinstance(outcome, FlashReport)
    assert outcome.exit_status == 6
    assert "a fake" in str(outcome)


def test_the_end_of_a_card_is_looked_at_before_anything_is_written(
    fault_device: MakeFaultDevice,
) -> None:
    content = random.Random(4).randbytes(8 * MIB)  # noqa: S311 - no key
    device = fault_device(size=32 * MIB)
    device.set(real_size=8 * MIB, beyond=Beyond.WRAP)
    (outcome,) = flash_all(content, [device], may_be_fake=True)
    assert not isinstance(outcome, FlashReport)
    assert outcome.problems[0].code == "target-fake"
    assert device.stats().bytes_written == 2 * 4096
    device.set()
    (outcome,) = flash_all(content, [device], may_be_fake=True)
    assert isinstance(outcome, FlashReport)
