"""Every failure a user can cause or meet, and the exit status each one ends in.

BalenaflashError            1   (never raised itself; a plain exception is a bug and ends in 1)
├── ImageError              3   the image is not what it should be, or cannot be read
├── EditError               3   the edit asked for cannot be made; nothing was changed
│   └── ExistsError         4   what would be made is there already
├── ConfigError             3   config.json, a recipe or a table is not valid
│   └── InvalidConfigError  3   several things in config.json or a recipe are wrong, told at once
├── ToolMissingError        3   a program that the work needs is not installed
├── ToolFailedError         3   a program that the work needs did not do its part
├── TargetRefusedError      4   nothing was written
└── WriteError              5   the target may hold part of what was asked for
    ├── InterruptedWriteError   by signal
    │   └── LeftError           by signal; the user did not wait
    ├── VerificationError   6   the read-back differs
    └── ImageFailedError    7   the image failed while it was written; the medium did not

The class answers whether the target was touched, the message names the thing and
the fact, and the hint says what to do next. Wrong usage (2) is click's own, or made of
one of these where it was raised for a word of the command line; see cli/usage.py.
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
    """What the user can do next; never needed to understand the message."""

    lifted_by: str | None = None
    """The option that lifts this refusal, and nothing else; ``None`` where none does."""


class CodedText(str):
    """A warning with a code, a stable name for scripts to look for."""

    __slots__ = ("code",)

    code: str

    def __new__(cls, text: str, *, code: str) -> Self:
        """``text``, and its ``code``, such as ``fat-not-unmounted``."""
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
        """Everything that is wrong; one entry except where all refusals are told at once."""
        return (Problem(self.code, str(self), self.hint),)


class ImageError(BalenaflashError):
    """The image is not what it should be, or cannot be read. Nothing was written."""

    exit_status = 3
    default_code = "image-invalid"


class EditError(BalenaflashError):
    """The edit asked for cannot be made. The image is as it was."""

    exit_status = 3
    default_code = "edit-impossible"


class ExistsError(EditError):
    """What an edit or copy would make is there already. Nothing was changed."""

    exit_status = 4
    default_code = "file-exists"


class ConfigError(BalenaflashError):
    """A config.json, a recipe or a table is not valid. Nothing was written."""

    exit_status = 3
    default_code = "config-invalid"


class InvalidConfigError(ConfigError):
    """What balenaOS cannot work with in config.json, or what a recipe cannot say."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(problem.message for problem in problems))
        self._problems = tuple(problems)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Everything that is wrong, in the order of the file."""
        return self._problems


class ToolMissingError(BalenaflashError):
    """A program that the work needs is not installed. Nothing was written."""

    exit_status = 3
    default_code = "tool-missing"


class ToolFailedError(BalenaflashError):
    """A program that the work needs did not do its part. Nothing was written."""

    exit_status = 3
    default_code = "tool-failed"


class TargetRefusedError(BalenaflashError):
    """The target must not, or cannot, be written. It was not opened for writing."""

    exit_status = 4
    default_code = "target-refused"

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(problem.message for problem in problems))
        self._problems = tuple(problems)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Every reason for the refusal, the gravest first."""
        return self._problems


def refusal(
    code: str, message: str, hint: str | None = None, *, lifted_by: str | None = None
) -> TargetRefusedError:
    """The error that refuses a target for one reason."""
    return TargetRefusedError([Problem(code, message, hint, lifted_by)])


class WriteError(BalenaflashError):
    """Writing began and did not end well: the target's content is undefined.

    ``written`` is the number of bytes the kernel accepted before the failure.
    """

    exit_status = 5
    default_code = "write-failed"

    def __init__(
        self,
        message: str,
        *,
        written: int = 0,
        code: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.written = written


class InterruptedWriteError(WriteError):
    """Writing was interrupted by a signal: the target's content is undefined."""

    default_code = "interrupted"


class LeftError(InterruptedWriteError):
    """The user did not wait until writing had stopped: what the target holds is not known."""


class ImageFailedError(WriteError):
    """The image failed after writing had begun, and the target holds part of it.

    It could not be read to its end, or was damaged, changed or not the one that was promised.
    The same before the first byte is written is an `ImageError`.
    """

    exit_status = 7
    default_code = "image-failed"


class VerificationError(WriteError):
    """What was read back is not what should be there."""

    exit_status = 6
    default_code = "verification-failed"


_LIKENESS = 0.7
"""Of two names, as `difflib` measures it from 0 to 1."""


def closest(name: str, known: Iterable[str]) -> str | None:
    """The one of ``known`` that ``name`` was most likely meant to be; ``None`` if none is near."""
    from difflib import get_close_matches  # noqa: PLC0415 - seldom needed

    by_fold = {each.casefold(): each for each in known}
    near = get_close_matches(name.casefold(), by_fold, n=1, cutoff=_LIKENESS)
    return by_fold[near[0]] if near else None
