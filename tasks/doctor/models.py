"""The models that the settings name: there, and the seedlings byte for byte what was shipped."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import httpx

from infra.settings import SEEDLING, settings
from infra.tracking import shown
from tasks.doctor.finding import Level


def check() -> Iterator[tuple[Level, str, str]]:
    chosen = settings()
    yield from seedlings()
    for name in ("student", "encoder", "teacher"):
        value: str = getattr(chosen, name)
        if value.startswith(("http://", "https://")):
            yield endpoint(value)
        elif value and value != "seedling":
            yield place(name, value)
        elif not value and name == "teacher":
            yield "ok", "no teacher: only champions answer", ""


def seedlings() -> Iterator[tuple[Level, str, str]]:
    """The shipped models against their SHA256SUMS."""
    wrong = []
    for line in (SEEDLING / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ", 1)
        file = SEEDLING / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            wrong.append(name)
    if wrong:
        yield (
            "wrong",
            f"seedlings: {', '.join(wrong[:3])} missing or changed",
            "pip install --force-reinstall --no-deps flywheel",
        )
    else:
        yield "ok", "seedlings: as they were shipped", ""


def endpoint(url: str) -> tuple[Level, str, str]:
    """Whether a teacher endpoint answers at all; it is asked for its models, which costs nothing."""
    key = settings().teacher_key.get_secret_value()
    try:
        said = httpx.get(
            f"{url.rstrip('/')}/models", timeout=5, headers={"authorization": f"Bearer {key}"} if key else {}
        )
    except httpx.HTTPError as problem:
        return (
            "wrong",
            f"the teacher at {shown(url)} does not answer ({type(problem).__name__})",
            "check FLYWHEEL_TEACHER",
        )
    if said.status_code in (401, 403):
        return (
            "wrong",
            f"the teacher at {shown(url)} refuses the key ({said.status_code})",
            "check FLYWHEEL_TEACHER_KEY",
        )
    return "ok", f"the teacher at {shown(url)} answers", ""


def place(name: str, value: str) -> tuple[Level, str, str]:
    """Whether a model is on this machine, by its path or in Hugging Face's cache."""
    setting = f"FLYWHEEL_{name.upper()}"
    folder = Path(value).expanduser()
    if (folder / "config.json").exists():
        return "ok", f"{name}: {folder}", ""
    if folder.is_absolute() or value.startswith(("./", "../", "~")) or value.count("/") > 1 or folder.is_dir():
        return "wrong", f"{setting} {value!r} has no config.json", f"check {setting}"
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(value, "config.json"), str):
        return "ok", f"{name}: {value}, in the cache", ""
    return "warning", f"{name}: {value} is not on this machine; the first turn downloads it", f"hf download {value}"
