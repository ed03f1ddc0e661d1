import bz2
import os
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from containers import file_origin, noise

from balenaflash.programs import find_system_program, minimal_environment, run_and_explain
from balenaflash.source.container import bzip2

NOBODY = 65534


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder where anybody may look, which those of tests are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def make_program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_root_runs_no_program_by_the_path_of_a_user(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `sh` is there twice, the other one is not.
    shell = make_program(open_folder / "sh", "true")
    other = make_program(open_folder / "of-a-user", "true")
    monkeypatch.setenv("PATH", f"{open_folder}:/usr/bin")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert find_system_program("sh") in {"/usr/bin/sh", "/bin/sh"}
    assert find_system_program("of-a-user") is None
    assert run_and_explain(["of-a-user"]) == "of-a-user is not installed"
    assert str(open_folder) not in minimal_environment()["PATH"]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert find_system_program("sh") == str(shell)
    assert find_system_program("of-a-user") == str(other)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert find_system_program("sh") is not None


def test_a_program_sees_no_secret_and_no_option_of_the_environment(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BALENA_TOKEN", "secret")
    monkeypatch.setenv("LBZIP2", "--verbose")
    program = make_program(open_folder / "show", f"env > {open_folder}/seen")
    assert run_and_explain([str(program)]) is None
    seen = {line.partition("=")[0] for line in (open_folder / "seen").read_text().splitlines()}
    assert {"LC_ALL", "PATH"} <= seen
    assert seen <= {"LC_ALL", "PATH", "PWD", "SHLVL", "_", "OLDPWD"}, "the rest is the shell's own"


@pytest.mark.needs("root")
def test_what_root_has_decoded_is_decoded_by_nobody(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BALENA_TOKEN", "secret")
    image = noise(1, 100_000)
    path = open_folder / "image.bz2"
    path.write_bytes(bz2.compress(image))
    path.chmod(0o600)
    ask = "id -u; id -g; id -G; env; echo; head -c 3; cat /proc/self/status; exit 1"
    program = make_program(open_folder / "lbzip2", ask)
    with file_origin(path) as origin:
        decoder = bzip2.open_bzip2(origin, str(program))
        with closing(decoder):
            buffer = bytearray(2000)
            decoder.readinto(memoryview(buffer))
    assert buffer.split()[:3] == [b"%d" % NOBODY] * 3, buffer
    assert b"secret" not in buffer
    assert b"\n\nBZhName:" in buffer, "it reads a file that only root may open"
    assert b"CapEff:\t0000000000000000" in buffer
