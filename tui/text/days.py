"""Days and times as people name them."""

from __future__ import annotations

from datetime import datetime, timedelta


def day_text(seconds: float, now: float) -> str:
    """The local day of a time in seconds since 1970: Today, Yesterday, Monday, 3 March, 3 March 2025."""
    then, today = datetime.fromtimestamp(seconds), datetime.fromtimestamp(now)
    days = (today.date() - then.date()) // timedelta(days=1)
    if days in (0, 1):
        return ("Today", "Yesterday")[days]
    if 1 < days < 7:
        return then.strftime("%A")
    day = f"{then.day} {then.strftime('%B')}"
    return day if then.year == today.year else f"{day} {then.year}"


def clock_text(seconds: float) -> str:
    """The local time of day, such as 14:02."""
    return datetime.fromtimestamp(seconds).strftime("%H:%M")
