"""The turns of a workload side by side: quality and cost by turn, and who served from when to when.

Each column is a turn, in order of time: the chosen candidate's quality with its interval, filled where it came to
serve, the teacher's beside it, hollow. Holdouts differ from turn to turn, so the teacher, which is on every one of
them, is what a student is to be read against. Promotions and rollbacks are marked where they happened.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from markupsafe import Markup
from sqlalchemy import select

from infra.database.session import session
from infra.database.tables import Promotion, Rollout, Verdict
from tasks.gate.rule import PROMOTE
from tasks.report import numbers
from tasks.report.file import place_of
from tasks.report.page import both, page
from tasks.report.pen import Box, Picture, Scale
from tasks.report.turn import Turn, turn_of, turns_of

MOST, BESIDE = 60, 12
HOW = {"release": "promoted", "rollout": "promoted by steps", "hand": "put there by hand"}


class Move(NamedTuple):
    """A change of who serves, as a person reads it: what happened, and whether it went back."""

    at: datetime
    said: str
    reason: str
    back: bool


class Story(NamedTuple):
    """A workload's turns, the earliest first, and the moves of its champion."""

    workload: str
    turns: list[Turn]
    moves: list[Move]
    left_out: int


def story_of(workload: str) -> Story:
    """The latest turns of a workload."""
    with session(write=False) as db:
        found = turns_of(db, Verdict.workload == workload)
        promotions = list(
            db.scalars(
                select(Promotion)
                .where(Promotion.workload == workload, Promotion.at.is_not(None))
                .order_by(Promotion.at, Promotion.number)
            )
        )
        ended = db.scalars(
            select(Rollout).where(
                Rollout.workload == workload, Rollout.ended.is_not(None), Rollout.status != "promoted"
            )
        ).all()
    moves = [_moved(row) for row in promotions if row.at]
    moves += [
        Move(row.ended, f"rollout of version {row.version} {row.status}", f"{row.reference} went on serving", True)
        for row in ended
        if row.ended
    ]
    return Story(workload, [turn_of(v) for v in found[-MOST:]], sorted(moves), max(0, len(found) - MOST))


def _moved(row: Promotion) -> Move:
    assert row.at is not None
    who = f"version {row.version}" if row.version else "the teacher"
    how = {
        "release": "promoted",
        "rollout": "promoted by steps",
        "rollback": "rolled back to",
        "hand": "put there by hand",
    }
    said = f"{how.get(row.by, row.by)} {who}" if row.by == "rollback" else f"{who} {how.get(row.by, row.by)}"
    return Move(row.at, said, row.reason, row.by == "rollback" or row.version is None)


def html(story: Story) -> str:
    turns = story.turns
    written = {turn.id for turn in turns if place_of(turn.id).exists()}
    return page(
        "turns.html.jinja", title=f"{story.workload}: {len(turns)} turns", workload=story.workload, turns=turns,
        left_out=story.left_out, written=written, moves=story.moves,
        promoted=sum(t.outcome == "promote" for t in turns),
        quality=both(lambda wide: quality(story, wide)), cost=both(lambda wide: cost(story, wide)),
    )  # fmt: skip


def _places(turns: Sequence[Turn], room: Box) -> list[float]:
    step = (room.right - room.left) / max(1, len(turns))
    return [room.left + (n + 0.5) * step for n in range(len(turns))]


def _room(wide: int, tall: int) -> Box:
    return Box(44, 34, wide - (8 if wide < 500 else 92), tall - 48)


def _feet(picture: Picture, turns: Sequence[Turn], places: Sequence[float], room: Box) -> None:
    """Dates below, and versions where one was to serve."""
    every = max(1, -(-len(turns) * 62 // int(room.right - room.left)))
    days = len({f"{turn.at:%d %b}" for turn in turns}) == len(turns)
    form = "%d %b" if days else "%d %b %H:%M" if every == 1 and len(turns) < 8 else "%H:%M"
    for n in range(0, len(turns), every):
        turn = turns[n]
        under = f"version {turn.verdict.model_version}" if turn.outcome == PROMOTE else turn.outcome
        picture.text(places[n], room.bottom + 17, f"{turn.at:{form}}", "axis", "middle")
        picture.text(places[n], room.bottom + 33, under, "axis", "middle")


def quality(story: Story, wide: int, tall: int = 320) -> Markup:
    """Chosen candidates and the teacher by turn, with the moves above."""
    turns, picture, room = story.turns, Picture(wide, tall), _room(wide, tall)
    values = [
        value
        for turn in turns
        for model in (turn.chosen, turn.teacher)
        for value in (model.metrics.get(key) for key in ("quality", "low", "high"))
        if value is not None
    ]
    if not values:
        return Markup("")
    pad = max(0.005, 0.08 * (max(values) - min(values)))
    up = Scale(max(0.0, min(values) - pad), min(1.0, max(values) + pad), room.bottom, room.top)
    for mark in up.ticks(5):
        picture.line(room.left, up(mark), room.right, up(mark), "rule")
        picture.text(room.left - 6, up(mark) + 4, numbers.percent(mark, 0), "axis", "end")
    places = _places(turns, room)
    _moves(picture, story, places, room)
    teachers = [
        (x + BESIDE, up(t.teacher.metrics["quality"]))
        for x, t in zip(places, turns, strict=True)
        if "quality" in t.teacher.metrics
    ]
    picture.path(teachers, "front")
    for x, y in teachers:
        picture.dot(x, y, 4, "mark teacher")
    for x, turn in zip(places, turns, strict=True):
        _chosen(picture, turn, x, up)
    _feet(picture, turns, places, room)
    if wide >= 500:
        if teachers:
            picture.text(room.right + 8, teachers[-1][1] + 4, "teacher")
        last = turns[-1].chosen.metrics.get("quality")
        if last is not None:
            y = up(last) + 4
            if teachers and abs(y - teachers[-1][1] - 4) < 14:
                y = teachers[-1][1] + (18 if y >= teachers[-1][1] + 4 else -10)
            picture.text(room.right + 8, y, "student", "label chosen")
    said = "; ".join(
        f"{t.at:%d %b %H:%M} {t.outcome} {numbers.percent(t.chosen.metrics.get('quality'))}" for t in turns
    )
    return picture.svg(f"Quality by turn: {said}")


def _chosen(picture: Picture, turn: Turn, x: float, up: Scale) -> None:
    metrics, kind = turn.chosen.metrics, "chosen" if turn.outcome == "promote" else "candidate"
    if metrics.get("quality") is None:
        return
    if metrics.get("low") is not None and metrics.get("high") is not None:
        picture.line(x, up(metrics["low"]), x, up(metrics["high"]), f"whisker {kind}")
    picture.dot(
        x, up(metrics["quality"]), 5, f"mark {kind}", f"{turn.chosen.name}: {numbers.percent(metrics['quality'])}"
    )


def _moves(picture: Picture, story: Story, places: Sequence[float], room: Box) -> None:
    """A line at each rollback, between the turns that it happened between, or behind the last."""
    step = places[1] - places[0] if len(places) > 1 else room.right - room.left
    for move in story.moves:
        if not move.back:
            continue
        before = sum(turn.at <= move.at for turn in story.turns)
        x = room.left + before * step - (step * 0.16 if before == len(places) else 0)
        picture.line(x, room.top - 8, x, room.bottom, "margin")
        anchor, said = "end" if x > room.right - 120 else "middle", "back" if picture.wide < 500 else move.said
        picture.text(x, room.top - 14, said, "label accent", anchor)


def cost(story: Story, wide: int, tall: int = 210) -> Markup:
    """What the chosen candidate cost relative to the teacher, by turn."""
    turns, picture, room = story.turns, Picture(wide, tall), _room(wide, tall)._replace(top=16)
    known = [turn.chosen.card.cost for turn in turns if turn.chosen.card.cost is not None]
    if not known:
        return Markup("")
    up = Scale(0, max(1.0, *known) * 1.05, room.bottom, room.top)
    for mark in up.ticks(4):
        picture.line(room.left, up(mark), room.right, up(mark), "rule")
        picture.text(room.left - 6, up(mark) + 4, f"{mark:g}×", "axis", "end")
    picture.line(room.left, up(1), room.right, up(1), "zero")
    if wide >= 500:
        picture.text(room.right + 8, up(1) + 4, "teacher")
    places = _places(turns, room)
    thick = min(36.0, 0.5 * (room.right - room.left) / len(turns))
    for x, turn in zip(places, turns, strict=True):
        if (value := turn.chosen.card.cost) is not None:
            kind = "bar chosen" if turn.outcome == "promote" else "bar"
            picture.box(x - thick / 2, up(value), thick, room.bottom - up(value), kind, numbers.times(value))
            if thick >= 20:
                picture.text(x, up(value) - 5, numbers.times(value), "label", "middle")
    _feet(picture, turns, places, room)
    said = "; ".join(f"{t.at:%d %b %H:%M} {numbers.times(t.chosen.card.cost)}" for t in turns)
    return picture.svg(f"Cost relative to the teacher by turn: {said}")
