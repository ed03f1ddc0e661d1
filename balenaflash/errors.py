"""Every failure a user can cause or meet, and the exit status each one ends in.

BalenaflashError            1   (only its subclasses are raised; any other exception is a bug)
├── ImageError              3   the image is not valid, or cannot be read
├── EditError               3   the edit is not possible; nothing was changed
│   └── ExistsError         4   the file or directory to make exists already
├── ConfigError             3   config.json, a recipe or a table is not valid
│   └── InvalidConfigError  3   config.json or a recipe has several errors, reported together
├── ToolMissingError        3   a program that is needed is not installed
├── ToolFailedError         3   a program that is needed failed
├── TargetRefusedError      4   nothing was written
└── WriteError              5   the target may hold part of the image
    ├── InterruptedWriteError   a signal stopped the write; the status is that of the signal
    │   └── LeftError           likewise, and the user did not wait until it stopped
    ├── VerificationError   6   the content read back differs
    └── ImageFailedError    7   the image failed while it was written; the target did not

The class shows whether the target was touched, the message names the thing and the fact, and the
hint is the next step. Wrong usage (2) is reported by click, or raised as one of these for an
argument and converted; see cli/usage.py.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self


@dataclass(frozen=True, slots=True)
class Problem:
    """One reason for a failure, fit to show and to be matched by a script."""

    code: str
    """Stable name, such as ``target-mounted``."""

    message: str
    """A sentence that names the thing and the fact."""

    hint: str | None = None
    """The next step for the user; the message can be understood without it."""

    lifted_by: str | None = None
    """The option that lifts this refusal and no other; ``None`` if no option does."""


class CodedText(str):
    """A warning with a code, such as ``fat-not-unmounted``: a stable name for scripts."""

    __slots__ = ("code",)

    code: str

    def __new__(cls, text: str, *, code: str) -> Self:
        made = super().__new__(cls, text)
        made.code = code
        return made


class BalenaflashError(Exception):
    """A failure with a message fit to show."""

    exit_status: ClassVar[int] = 1
    default_code: ClassVar[str] = "error"

    def __init__(self, message: str, *, code: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.code = code or self.default_code
        self.hint = hint

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All reasons for the failure; most errors have one."""
        return (Problem(self.code, str(self), self.hint),)


class SeveralProblemsError(BalenaflashError):
    """A failure for several reasons."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(problem.message for problem in problems))
        self._problems = tuple(problems)

    @property
    def problems(self) -> tuple[Problem, ...]:
        return self._problems


class ImageError(BalenaflashError):
    """The image is not valid, or cannot be read. Nothing was written."""

    exit_status = 3
    default_code = "image-invalid"


class EditError(BalenaflashError):
    """The edit is not possible. The image is unchanged."""

    exit_status = 3
    default_code = "edit-impossible"


class ExistsError(EditError):
    """The file or directory that an edit or a copy would make exists already. Nothing changed."""

    exit_status = 4
    default_code = "file-exists"


class ConfigError(BalenaflashError):
    """A config.json, a recipe or a table is not valid. Nothing was written."""

    exit_status = 3
    default_code = "config-invalid"


class InvalidConfigError(SeveralProblemsError, ConfigError):
    """A config.json that balenaOS cannot use, or a recipe that is not valid.

    The problems are in the order of the file.
    """


class ToolMissingError(BalenaflashError):
    """A program that is needed is not installed. Nothing was written."""

    exit_status = 3
    default_code = "tool-missing"


class ToolFailedError(BalenaflashError):
    """A program that is needed failed. Nothing was written."""

    exit_status = 3
    default_code = "tool-failed"


class TargetRefusedError(SeveralProblemsError):
    """The target must not, or cannot, be written. It was not opened for writing.

    The problems are all reasons for the refusal, the gravest first.
    """

    exit_status = 4
    default_code = "target-refused"


def refusal(
    code: str, message: str, hint: str | None = None, *, lifted_by: str | None = None
) -> TargetRefusedError:
    """The error that refuses a target for one reason."""
    return TargetRefusedError([Problem(code, message, hint, lifted_by)])


class WriteError(BalenaflashError):
    """Writing failed after it had begun: the content of the target is undefined."""

    exit_status = 5
    default_code = "write-failed"


class InterruptedWriteError(WriteError):
    """A signal stopped the write: the content of the target is undefined."""

    default_code = "interrupted"


class LeftError(InterruptedWriteError):
    """The user did not wait until the write stopped: the content of the target is unknown."""


class ImageFailedError(WriteError):
    """The image failed after writing had begun, and the target holds part of it.

    It could not be read to its end, was damaged, changed, or does not have the expected checksum.
    The same failure before the first byte is written is an `ImageError`.
    """

    exit_status = 7
    default_code = "image-failed"


class VerificationError(WriteError):
    """The content that was read back is not the one that was written."""

    exit_status = 6
    default_code = "verification-failed"


_LIKENESS = 0.7
"""Least similarity of two names, from 0 to 1 as `difflib` measures it."""


def closest(name: str, known: Iterable[str]) -> str | None:
    """The name among ``known`` that is most similar to ``name``; ``None`` if none is similar."""
    from difflib import get_close_matches  # noqa: PLC0415 - seldom needed

    by_fold = {each.casefold(): each for each in known}
    near = get_close_matches(name.casefold(), by_fold, n=1, cutoff=_LIKENESS)
    return by_fold[near[0]] if near else None
