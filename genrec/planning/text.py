"""Sizes and times as people read them; a space in them never breaks a line."""

NO_BREAK = "\u00a0"


def size_text(value: float) -> str:
    """Bytes with a unit, to three digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 999.5:
            return f"{value:.3g}{NO_BREAK}{unit}"
        value /= 1024
    return f"{value:.3g}{NO_BREAK}TiB"


def time_text(value: float) -> str:
    """Seconds as milliseconds or seconds, to three digits."""
    return f"{1e3 * value:.3g}{NO_BREAK}ms" if value < 1 else f"{value:.3g}{NO_BREAK}s"
