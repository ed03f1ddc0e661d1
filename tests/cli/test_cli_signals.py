"""Signals at moments that are hard to hit: while the command is loaded, and two at once."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from builders import Layout
from commandline import clean_environment
from imagecopies import MakeImage

SIGNALLED = """
import importlib.abc, os, runpy, sys

_, module, numbers, *arguments = sys.argv

class Signaller(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == module:
            sys.meta_path.remove(self)
            for number in numbers.split(","):
                os.kill(os.getpid(), int(number))
        return None

sys.meta_path.insert(0, Signaller())
sys.argv[:] = ["balenaflash", *arguments]
runpy.run_module("balenaflash", run_name="__main__", alter_sys=True)
"""
"""Sends itself the signals of the second argument while the module of the first one is loaded."""

SIGINT, SIGTERM, SIGHUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


def run_signalled(
    module: str, signals: list[signal.Signals], *args: str | Path
) -> subprocess.CompletedProcess[str]:
    numbers = ",".join(str(int(number)) for number in signals)
    command = [sys.executable, "-c", SIGNALLED, module, numbers, *map(str, args)]
    return subprocess.run(
        command, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    "module", ["click", "balenaflash.cli.inspect", "balenaflash.commands.inspect", "parted"]
)
@pytest.mark.parametrize(
    "signals",
    [[SIGINT], [SIGTERM], [SIGTERM, SIGTERM], [SIGINT, SIGTERM]],
    ids=lambda signals: "-".join(each.name for each in signals),
)
def test_a_signal_while_it_is_loaded_is_answered_as_any_other(
    module: str, signals: list[signal.Signals], image: MakeImage
) -> None:
    path = image(Layout.GPT_FAT16).path
    run = run_signalled(module, signals, "inspect", "--json", path)
    assert -run.returncode in signals, run.stderr
    assert "Traceback" not in run.stderr
    envelope = json.loads(run.stdout)
    assert envelope["exit_status"] == 128 - run.returncode
    assert [error["code"] for error in envelope["errors"]] == ["interrupted"]


def test_without_json_one_line_says_so(image: MakeImage) -> None:
    run = run_signalled("parted", [SIGHUP], "inspect", image(Layout.GPT_FAT16).path)
    assert (run.returncode, run.stdout) == (-SIGHUP, "")
    assert run.stderr.split() == ["balenaflash:", "Interrupted."]
