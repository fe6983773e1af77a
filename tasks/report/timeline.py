"""Traffic and what was said of it, over time, as it was when it was decided: by minute, hour or day, as the span asks.

Bars above are interactions, those that a student answered in the accent; below, what people said: liked upwards,
disliked and corrected downwards. The holdout is the last part of it.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from markupsafe import Markup
from sqlalchemy import ColumnElement, case, func, select
from sqlalchemy.orm import Session

from infra.database.policy import of_conversation, opinion_sign
from infra.database.session import session
from infra.database.tables import DatasetItem, Feedback, Interaction
from infra.registry import SERVED
from tasks.report.pen import Box, Picture, Scale
from tasks.report.turn import Turn

DAYS = 60
GRAINS = (("minute", timedelta(hours=2), 16), ("hour", timedelta(days=3), 13), ("day", timedelta.max, 10))
FORMS = {"minute": "YYYY-MM-DD HH24:MI", "hour": "YYYY-MM-DD HH24", "day": "YYYY-MM-DD"}
SHOWN = {"minute": "%H:%M", "hour": "%d %b %H:%M", "day": "%d %b"}


class Traffic(NamedTuple):
    """Counts by time: `when` are the beginnings of equal spans of `grain`; lists have a number for each."""

    grain: str
    when: list[datetime]
    teacher: list[int]
    students: list[int]
    liked: list[int]
    disliked: list[int]
    corrected: list[int]
    held_from: datetime | None

    @property
    def opinions(self) -> int:
        return sum(self.liked) + sum(self.disliked) + sum(self.corrected)


def traffic_of(turn: Turn) -> Traffic | None:
    """What there was of the workload when it was decided; None where nothing is left."""
    mine = Interaction.workload == turn.workload, Interaction.at <= turn.at
    with session(write=False) as db:
        first, last = db.execute(select(func.min(Interaction.at), func.max(Interaction.at)).where(*mine)).one()
        if first is None:
            return None
        first = max(first, last - timedelta(days=DAYS))
        grain, _, letters = next(one for one in GRAINS if last - first <= one[1])
        when = _spans(first, last, grain)
        within = (*mine, Interaction.at >= when[0])
        counted = _counted(db, within, grain, letters)
        said = _said(db, within, when, grain)
        held_from = db.scalar(
            select(func.min(Interaction.at))
            .join(DatasetItem, DatasetItem.interaction_id == Interaction.id)
            .where(DatasetItem.dataset_id == turn.dataset.id, DatasetItem.split == "holdout")
        )
    names = [_name(start, letters) for start in when]
    rows = {kind: [counted[name, kind] for name in names] for kind in ("teacher", "student")}
    opinions = {kind: [said[name, kind] for name in names] for kind in ("liked", "disliked", "corrected")}
    return Traffic(grain, when, rows["teacher"], rows["student"], **opinions, held_from=held_from)


def _spans(first: datetime, last: datetime, grain: str) -> list[datetime]:
    step = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": timedelta(days=1)}[grain]
    zero = {"second": 0, "microsecond": 0} | ({"minute": 0} if grain != "minute" else {})
    start = first.astimezone(UTC).replace(**zero, **({"hour": 0} if grain == "day" else {}))  # type: ignore[arg-type]
    found = [start]
    while found[-1] + step <= last:
        found.append(found[-1] + step)
    return found


def _name(at: datetime, letters: int) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M")[:letters]


def _counted(db: Session, within: Sequence[Any], grain: str, letters: int) -> Counter[tuple[str, str]]:
    """Interactions by span and by who answered, counted by the database."""
    who = case((Interaction.model.startswith(SERVED, autoescape=True), "student"), else_="teacher")
    when = _span(db, grain, letters)
    query = select(when, who, func.count()).where(*within).group_by(when, who)
    return Counter({(str(name), str(kind)): n for name, kind, n in db.execute(query)})


def _span(db: Session, grain: str, letters: int) -> ColumnElement[Any]:
    if db.get_bind().dialect.name == "sqlite":
        return func.substr(func.strftime("%Y-%m-%d %H:%M", Interaction.at), 1, letters)
    return func.to_char(func.timezone("UTC", Interaction.at), FORMS[grain])


def _said(db: Session, within: Sequence[Any], when: Sequence[datetime], grain: str) -> Counter[tuple[str, str]]:
    """What was said of the interactions of each span, by the policy's reading of it."""
    letters = next(letters for name, _, letters in GRAINS if name == grain)
    joined = select(Interaction.at, Feedback).join(Feedback, Feedback.record_id == Interaction.external_id)
    found: Counter[tuple[str, str]] = Counter()
    for at, opinion in db.execute(joined.where(*within).execution_options(yield_per=1000)):
        if not of_conversation(opinion):
            found[_name(at, letters), _kind(opinion)] += 1
    return found


def _kind(opinion: Feedback) -> str:
    if opinion.kind in ("correction", "preference"):
        return "corrected"
    sign = opinion_sign(opinion)
    return "liked" if sign > 0 else "disliked" if sign < 0 else "neither"


def timeline(found: Traffic, wide: int) -> Markup:
    """Two panels on one axis of time."""
    narrow = wide < 500
    left, right, tall, gap = 46, wide - (8 if narrow else 90), 290 if found.opinions else 190, 44
    upper = Box(left, 24, right, 140)
    picture = Picture(wide, tall)
    step = (right - left) / len(found.when)
    thick = min(64.0, max(1.0, min(0.62 * step, step - 2) if step > 5 else step - 0.5))
    places = [left + (n + 0.5) * step for n in range(len(found.when))]
    _held(picture, found, upper, step, tall, left)
    _volume(picture, found, upper, places, thick, narrow)
    if found.opinions:
        _opinions(picture, found, Box(left, upper.bottom + gap, right, tall - 30), places, thick, narrow)
    _times(picture, found, places, upper.bottom + 16, narrow)
    whole = sum(found.teacher) + sum(found.students)
    said = f"{whole:,} interactions, {sum(found.students):,} answered by students; {sum(found.liked):,} liked, "
    return picture.svg(f"{said}{sum(found.disliked):,} disliked, {sum(found.corrected):,} corrected")


def _held(picture: Picture, found: Traffic, upper: Box, step: float, tall: float, left: float) -> None:
    if found.held_from is None:
        return
    span = (found.when[1] - found.when[0]) if len(found.when) > 1 else timedelta(minutes=1)
    x = left + step * max(0.0, (found.held_from - found.when[0]) / span)
    if x > upper.right - 2:
        x = upper.right - step
    picture.box(x, upper.top, upper.right - x, tall - 30 - upper.top, "held")
    picture.text(
        upper.right, upper.top - 8, "held out from here on" if upper.right - x > 120 else "held out", "axis", "end"
    )


def _volume(picture: Picture, found: Traffic, room: Box, places: Sequence[float], thick: float, narrow: bool) -> None:
    whole = [t + s for t, s in zip(found.teacher, found.students, strict=True)]
    up = Scale(0, max(whole) or 1, room.bottom, room.top)
    for mark in up.ticks(5):
        picture.line(room.left, up(mark), room.right, up(mark), "rule")
        picture.text(room.left - 6, up(mark) + 4, f"{mark:,.0f}", "axis", "end")
    for x, when, teacher, total in zip(places, found.when, found.teacher, whole, strict=True):
        said = f"{when:%Y-%m-%d %H:%M} UTC: {total:,}"
        picture.box(x - thick / 2, up(teacher), thick, room.bottom - up(teacher), "bar", said)
        picture.box(x - thick / 2, up(total), thick, up(teacher) - up(total), "bar chosen", said)
    if any(found.students):
        y = room.top - 8
        if narrow:
            picture.text(room.left, y, "by students", "label chosen")
        else:
            picture.text(room.right + 10, room.top + 12, "by students", "label chosen")
            picture.text(room.right + 10, room.bottom - 4, "by teacher", "label")
    else:
        picture.text(room.left, room.top - 8, f"interactions a {found.grain}", "label")


def _opinions(picture: Picture, found: Traffic, room: Box, places: Sequence[float], thick: float, narrow: bool) -> None:
    under = [d + c for d, c in zip(found.disliked, found.corrected, strict=True)]
    top, low = max(found.liked) or 1, max(under) or 1
    up = Scale(-low, top, room.bottom, room.top)
    picture.line(room.left, up(0), room.right, up(0), "zero")
    picture.text(room.left - 6, up(0) + 4, "0", "axis", "end")
    picture.text(room.left - 6, up(top) + 8, f"{max(found.liked):,}", "axis", "end")
    if up(-low) - up(0) > 14:
        picture.text(room.left - 6, up(-low) + 2, f"{max(under):,}", "axis", "end")
    for x, liked, disliked, corrected in zip(places, found.liked, found.disliked, found.corrected, strict=True):
        picture.box(x - thick / 2, up(liked), thick, up(0) - up(liked), "bar soft", f"liked {liked:,}")
        picture.box(x - thick / 2, up(0), thick, up(-disliked) - up(0), "bar dark", f"disliked {disliked:,}")
        most = up(-disliked - corrected) - up(-disliked)
        picture.box(x - thick / 2, up(-disliked), thick, most, "bar hollow", f"corrected {corrected:,}")
    said = [f"liked {sum(found.liked):,}", f"disliked {sum(found.disliked):,}", f"corrected {sum(found.corrected):,}"]
    if narrow:
        picture.text(room.left, room.top - 6, "what people said: " + ", ".join(said[:1]), "label")
        picture.text(room.left, picture.tall - 8, ", ".join(said[1:]), "label")
        return
    picture.text(room.right + 10, up(0) - 6, said[0], "label")
    picture.text(room.right + 10, up(0) + 15, said[1], "label")
    picture.text(room.right + 10, up(0) + 31, said[2], "label")


def _times(picture: Picture, found: Traffic, places: Sequence[float], y: float, narrow: bool) -> None:
    """As many as there is room for; the day with the first where they are of one day."""
    form = SHOWN[found.grain]
    every = max(1, -(-len(places) * (64 if found.grain != "hour" else 92) // int(places[-1] - places[0] + 64)))
    for n in range(0, len(places), every):
        picture.text(places[n], y, f"{found.when[n]:{form}}", "axis", "middle")
