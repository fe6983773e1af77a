"""The import table of the house: who may import whom, and what must stay out of a fast start."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"flows", "tasks", "quant", "infra"}
MAY = {
    "quant": {"quant"},
    "infra": {"infra"},
    "tasks": {"tasks", "quant", "infra"},
    "flows": {"flows", "tasks", "infra", "quant"},
}
NEVER = {
    "quant": {"prefect", "mlflow", "pydantic", "sqlalchemy", "datasets"},
    "infra": {"prefect"},
    "tasks": {"prefect"},
    "flows": {"torch", "transformers", "mlflow", "datasets", "peft"},
}


def imports(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, dotted name) of each import anywhere in a file."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            found.append((node.lineno, node.module or ""))
    return found


@pytest.mark.parametrize("room", sorted(OURS))
def test_a_room_imports_only_what_the_table_allows(room: str) -> None:
    wrong = []
    files = sorted((ROOT / room).rglob("*.py"))
    for file in files:
        for line, name in imports(ast.parse(file.read_text())):
            top = name.split(".")[0]
            specs_only = room == "flows" and top == "quant" and not name.startswith("quant.methods")
            if (top in OURS and top not in MAY[room]) or top in NEVER[room] or specs_only:
                wrong.append(f"{file.relative_to(ROOT)}:{line} imports {name}")
    assert files
    assert not wrong, "\n".join(wrong)


def test_specs_and_the_command_line_start_without_the_heavy_libraries() -> None:
    heavy = ["torch", "transformers", "mlflow", "datasets", "prefect"]
    code = (
        "import sys, flows.__main__, tasks.curate, tasks.distill, tasks.quantize, tasks.evaluate, tasks.release\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_there_are_no_drawers_for_odds_and_ends() -> None:
    banned = {"utils", "common", "helpers", "core", "manager"}
    assert [
        p
        for room in OURS
        for p in (ROOT / room).rglob("*.py")
        if banned & set(p.relative_to(ROOT).with_suffix("").parts)
    ] == []
