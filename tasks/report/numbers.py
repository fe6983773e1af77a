"""Numbers as a person reads them; what is not known is a dash."""

NONE = "–"


def percent(share: float | None, digits: int = 1) -> str:
    return NONE if share is None else f"{100 * share:.{digits}f} %"


def points(difference: float | None) -> str:
    """A difference of shares, in points, with a true minus sign."""
    return NONE if difference is None else f"{100 * difference:+.1f}".replace("-", "−")


def size(count: float | None) -> str:
    """Decimal units, as disks and downloads are sold."""
    if count is None:
        return NONE
    for unit, many in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= many:
            return f"{count / many:.3g} {unit}" if count < 999.5 * many else f"{count / many:,.0f} {unit}"
    return f"{count:.0f} B"


def ms(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value / 1000:.3g} s" if value >= 1000 else f"{value:.0f} ms" if value >= 10 else f"{value:.2g} ms"


def count(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}"


def times(value: float | None) -> str:
    """A ratio: 0.36×, 4.9×, 12×."""
    return (
        NONE if value is None else f"{value:.2f}×" if value < 2 else f"{value:.1f}×" if value < 10 else f"{value:,.0f}×"
    )


def dollars(amount: float | None) -> str:
    if amount is None:
        return NONE
    return f"${amount:,.2f}" if amount >= 0.1 or amount == 0 else f"${amount:.3g}"


def seconds(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:,.0f} s" if value >= 100 else f"{value:.3g} s"
