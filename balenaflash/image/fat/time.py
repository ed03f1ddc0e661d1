"""Times as FAT stores them: local, in steps of two seconds, from 1980 to 2107."""

import os
from datetime import UTC, datetime

from balenaflash.errors import EditError

_FIRST = datetime(1980, 1, 1)  # noqa: DTZ001 -- FAT knows no time zone
_LAST = datetime(2107, 12, 31, 23, 59, 58)  # noqa: DTZ001 -- FAT knows no time zone


def encode_time(moment: datetime) -> tuple[int, int]:
    """Date and time words of ``moment``, or of the nearest moment FAT can express.

    Microsoft FAT specification (fatgen103), "Date and Time Formats".
    """
    moment = min(max(moment.replace(tzinfo=None), _FIRST), _LAST)
    date = (moment.year - 1980) << 9 | moment.month << 5 | moment.day
    return date, moment.hour << 11 | moment.minute << 5 | moment.second // 2


def decode_time(date: int, time: int) -> datetime | None:
    """The moment that two words express; ``None`` for a zero date and for an impossible one."""
    try:
        return datetime(  # noqa: DTZ001 -- FAT knows no time zone
            1980 + (date >> 9),
            date >> 5 & 0xF,
            date & 0x1F,
            time >> 11,
            time >> 5 & 0x3F,
            (time & 0x1F) * 2,
        )
    except ValueError:
        return None


def time_of_edit() -> datetime:
    """``SOURCE_DATE_EPOCH`` in UTC where it is set, else now in local time.

    Raises:
        EditError: ``SOURCE_DATE_EPOCH`` is not a number of seconds.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if not epoch:
        return datetime.now()  # noqa: DTZ005 -- FAT holds local time
    try:
        return datetime.fromtimestamp(int(epoch), UTC).replace(tzinfo=None)
    except (ValueError, OverflowError, OSError) as error:
        raise EditError(
            f"SOURCE_DATE_EPOCH is {epoch!r}, not a number of seconds since 1970",
            code="source-date-epoch-invalid",
            hint="Set it to a number, such as the output of date +%s, or unset it.",
        ) from error
