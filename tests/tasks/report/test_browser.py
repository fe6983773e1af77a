"""The pages in a real browser: at a desk and on a phone, by day and by night, with traffic that means harm."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.report.report import comparison, report
from tests.conftest import living_in
from tests.tasks.report.made_turn import turn

sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'flywheel[dev]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A turn's report and the comparison."""
    with living_in(tmp_path_factory.mktemp("home"), TEACHER=""):
        result = turn("hostile<script>window.hacked=1</script>", hostile=True)
        return {"turn": Path(report(result["verdict"])["path"]), "turns": Path(comparison()["path"])}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.mark.parametrize("name", ["turn", "turns"])
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("wide", [1280, 390, 360])
def test_it_is_readable_and_asks_nobody(
    pages: dict[str, Path], browser: Any, tmp_path: Path, name: str, theme: str, wide: int
) -> None:
    context = browser.new_context(viewport={"width": wide, "height": 900}, color_scheme=theme)
    shown = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    shown.on("console", lambda message: said.append(message.text))
    shown.on("pageerror", lambda error: said.append(str(error)))
    shown.on("request", lambda request: asked.append(request.url))
    shown.goto(pages[name].as_uri())
    shown.screenshot(path=tmp_path / f"{name}-{wide}-{theme}.png", full_page=True)
    assert said == [] and asked == [pages[name].as_uri()]
    assert shown.evaluate("window.hacked") is None
    assert shown.evaluate("document.documentElement.scrollWidth") <= wide
    # What is drawn keeps within its picture, and the labels of an axis do not lie on each other.
    assert shown.evaluate(CUT) == []
    assert shown.evaluate(OVERLAPS) == []
    sections = shown.evaluate("[...document.querySelectorAll('section')].filter(s => s.offsetHeight > 40).length")
    assert sections == {"turn": 9, "turns": 4}[name]
    assert shown.evaluate("[...document.querySelectorAll('svg')].every(s => s.getAttribute('aria-label'))")
    assert shown.evaluate("document.querySelectorAll('h1').length") == 1
    assert shown.evaluate(CONTRAST) >= 4.5
    context.close()


SEEN = "[...document.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().width)"
CUT = f"""() => {SEEN}.flatMap(svg => [...svg.querySelectorAll('text')].filter(t => {{
    const a = t.getBoundingClientRect();
    return a.left < -1 || a.right > document.documentElement.clientWidth + 1;
}}).map(t => t.textContent))"""
OVERLAPS = f"""() => {SEEN}.flatMap(svg => {{
    const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
    return boxes.flatMap(([one, a], i) => boxes.slice(i + 1).filter(([_, b]) =>
        Math.min(a.right, b.right) - Math.max(a.left, b.left) > 3 &&
        Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 6).map(([other]) => one + ' | ' + other));
}})"""
# The least contrast of small text with the paper, by WCAG 2.2.
CONTRAST = """() => {
    const channel = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    const light = colour => colour.match(/[0-9.]+/g).slice(0, 3)
        .reduce((sum, v, i) => sum + channel(v / 255) * [.2126, .7152, .0722][i], 0);
    const paper = light(getComputedStyle(document.body).backgroundColor);
    const read = 'p, th, td:not(.none), dt, dd, h1, h2, h3, .who, summary';
    const texts = [...document.querySelectorAll(read)].map(e => getComputedStyle(e).color);
    const labels = [...document.querySelectorAll('svg text')].map(e => getComputedStyle(e).fill);
    const contrast = l => (Math.max(l, paper) + .05) / (Math.min(l, paper) + .05);
    return Math.min(...[...texts, ...labels].map(light).map(contrast));
}"""
