"""Fixtures of the house, and the word about what could not be tested on this machine."""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import capabilities
import commandline
import loopdev
import pytest
from builders import BuiltImage, Layout
from faultdev import FaultDevice, MakeFaultDevice
from hypothesis import HealthCheck, settings
from imagecopies import ImageStore, MakeImage

WITHOUT_VM = "not vm"
"""The marker expression of a run that names none; see pyproject.toml."""

VM_TESTS = Path(__file__).resolve().parent / "vm"

_LONG_BYTES = 4096

_MISSING = "missing capability"
"""Name of a property of a skipped test's report, which also comes over from other processes."""


def pytest_configure(config: pytest.Config) -> None:
    capabilities.extend_path()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        # A shell ignores SIGINT for what it runs in the background, and nohup ignores SIGHUP; a
        # program under test would inherit that.
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    # A busy machine is slow, which says nothing about the code: no test is timed.
    settings.register_profile(
        "house", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("house")
    config.addinivalue_line(
        "markers", "needs(*capabilities): skipped, by name, where the machine lacks one of them"
    )
    config.addinivalue_line("markers", "vm: runs in a virtual machine, and only when asked for")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        fixtures = item.fixturenames if isinstance(item, pytest.Function) else []
        for name in fixtures:
            if name in capabilities.NEEDED_BY_FIXTURE:
                item.add_marker(pytest.mark.needs(*capabilities.NEEDED_BY_FIXTURE[name]))


def pytest_runtest_setup(item: pytest.Item) -> None:
    needed = dict.fromkeys(name for mark in item.iter_markers("needs") for name in mark.args)
    missing = [name for name in needed if capabilities.reason_missing(name) is not None]
    if not missing:
        return
    reason = "; ".join(f"{name}: {capabilities.reason_missing(name)}" for name in missing)
    if os.environ.get("CI") == "true" and not capabilities.REQUIRED_IN_CI.isdisjoint(missing):
        pytest.fail(f"CI must have this: {reason}", pytrace=False)
    item.user_properties += [(_MISSING, name) for name in missing]
    pytest.skip(reason)


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Say where long bytes differ: pytest in CI prints them whole, and nothing else is read."""
    if op != "==" or not isinstance(left, bytes) or not isinstance(right, bytes):
        return None
    if max(len(left), len(right)) < _LONG_BYTES:
        return None
    pairs = enumerate(zip(left, right, strict=False))
    first = next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))
    excerpts = f"{left[first : first + 16]!r} == {right[first : first + 16]!r}"
    return [f"{len(left)} bytes == {len(right)} bytes", f"first difference at {first}: {excerpts}"]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    _tell_what_is_missing(terminalreporter)
    left_out = config.option.markexpr == WITHOUT_VM
    if left_out and any(VM_TESTS.is_relative_to(Path(name).resolve()) for name in config.args):
        terminalreporter.section("not tested: the virtual machine")
        terminalreporter.line("real devices under a real kernel: python -m pytest -m vm tests/vm")


def _tell_what_is_missing(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = Counter(
        str(value)
        for report in terminalreporter.stats.get("skipped", [])
        for name, value in report.user_properties
        if name == _MISSING
    )
    if not skipped:
        return
    terminalreporter.section("not tested: this machine lacks")
    for name, count in skipped.most_common():
        tests = "1 test" if count == 1 else f"{count} tests"
        terminalreporter.line(f"{name}: {tests} skipped ({capabilities.reason_missing(name)})")


@pytest.fixture
def balenaflash() -> commandline.RunBalenaflash:
    """Run ``balenaflash ARGS`` in a process of its own and a clean environment."""
    return commandline.run


@pytest.fixture
def attach_loop() -> Iterator[loopdev.AttachLoop]:
    """Attach files as loop devices; each is detached at the end, or the test fails."""
    with ExitStack() as stack:

        def attach(
            path: Path, *, read_only: bool = False, sector_size: int = 512, offset: int = 0
        ) -> Path:
            return stack.enter_context(
                loopdev.attached(path, read_only=read_only, sector_size=sector_size, offset=offset)
            )

        yield attach


@pytest.fixture
def fault_device() -> Iterator[MakeFaultDevice]:
    """Make block devices that fail as told; each is gone at the end, or the test fails."""
    with ExitStack() as stack:

        def make(*, size: int, sector_size: int = 512) -> FaultDevice:
            return stack.enter_context(FaultDevice(size, sector_size=sector_size))

        yield make


@pytest.fixture(scope="session")
def _image_store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    return ImageStore(tmp_path_factory.mktemp("images"))


@pytest.fixture
def image(_image_store: ImageStore, tmp_path: Path) -> MakeImage:
    """Copies of test images, for the test to change."""

    def make(layout: Layout, *, flasher: bool = False) -> BuiltImage:
        return _image_store.copy(tmp_path, layout, flasher=flasher)

    return make
