"""What a local teacher is asked, and what is kept of what it says, against the model itself."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.engines.chat import load_tokenizer, render
from infra.prefix import Prefix
from tasks.dataset.frozen import Dataset
from tasks.lessons.lesson import Desk
from tasks.lessons.reading import UNREAD, as_the_teacher_reads, said
from tasks.lessons.top_k import CORRECTED, OTHERWISE, known_of
from tasks.teachers.hf import LocalTeacher, likeliest, load_model, of_the_answer
from tasks.training.examples import encode
from tests.models import PREFIX

ROWS = [
    {
        "messages": [{"role": "user", "content": f"where is order {n}"}], "tools": None, "weight": 1.0,
        "expected": {"role": "assistant", "content": "where and when " * (n + 1)},
        "origin": "correction" if n == 1 else "logged",
    }
    for n in range(4)
]  # fmt: skip


def desk_of(folder: Path, teacher: Path, prefix: Prefix | None = PREFIX) -> Desk:
    folder.mkdir(exist_ok=True)
    tokenizer = load_tokenizer(teacher)
    dataset = Dataset("d", "shop", str(folder), prefix, {})
    return Desk(dataset, ROWS, encode(tokenizer, ROWS, 512), tokenizer, LocalTeacher(str(teacher)), 0, None)


@pytest.fixture(scope="module")
def taught(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bare model, which has learned the first of the rows, prefix and all."""
    folder = tmp_path_factory.mktemp("taught") / "model"
    shutil.copytree(bare, folder)
    model, tokenizer = load_model(str(bare)), load_tokenizer(bare)
    rows = [{**row, **dict(zip(("messages", "tools"), PREFIX.restore(row["messages"]), strict=True))} for row in ROWS]
    (e,) = encode(tokenizer, rows[:1], 512)
    ids, prompt = torch.tensor([e.ids]), e.prompt
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(40):
        logits = model(input_ids=ids).logits[0, prompt - 1 : -1]
        torch.nn.functional.cross_entropy(logits, ids[0, prompt:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def baked(bare: Path, folder: Path, prefix: Prefix) -> Path:
    shutil.copytree(bare, folder)
    (folder / "flywheel.json").write_text(json.dumps({"prefix": prefix.to_json()}))
    return folder


def test_a_general_teacher_reads_the_request_as_it_was_sent_and_a_baked_one_as_the_student_does(
    bare: Path, tmp_path: Path
) -> None:
    desk = desk_of(tmp_path / "general", bare)
    read = as_the_teacher_reads(desk, desk.tokenizer)
    for number, row in enumerate(ROWS):
        messages, tools = PREFIX.restore(row["messages"])
        assert read[number].ids[: read[number].prompt] == render(desk.tokenizer, messages, tools, prompt=True)
    desk = desk_of(tmp_path / "baked", baked(bare, tmp_path / "teacher", PREFIX))
    assert list(as_the_teacher_reads(desk, desk.tokenizer).values()) == list(desk.examples)
    desk = desk_of(tmp_path / "other", baked(bare, tmp_path / "stranger", Prefix("Another job.")))
    assert as_the_teacher_reads(desk, desk.tokenizer) == {}


def test_it_is_followed_where_it_would_have_said_the_same_and_all_else_is_counted(taught: Path, tmp_path: Path) -> None:
    desk = desk_of(tmp_path / "a", taught)
    found = known_of(desk, 4, desk.tokenizer)
    model, its_own = load_model(str(taught)).eval(), {}
    for row, e in as_the_teacher_reads(desk, desk.tokenizer).items():
        with torch.no_grad():
            likely = model(input_ids=torch.tensor([e.ids])).logits[0, e.prompt - 1 : -1].argmax(-1)
        its_own[row] = (likely == torch.tensor(e.ids[e.prompt :])).tolist()
    assert all(its_own[0]) and any(its_own[3]) and not all(its_own[3])
    assert found.keys() == {row for row, own in its_own.items() if any(own)} - {1}
    for row, (values, ids) in found.items():
        assert values.isfinite().all(-1).tolist() == its_own[row]
        assert values.shape == ids.shape == (len(its_own[row]), 4)
    left = Counter({CORRECTED: 1, OTHERWISE: 3 - len(found)})
    assert desk.report == {"followed": len(found), "not_followed": dict(+left)}


def test_what_it_cannot_read_and_what_it_writes_otherwise_is_not_followed(bare: Path, tmp_path: Path) -> None:
    desk = desk_of(tmp_path / "b", baked(bare, tmp_path / "stranger", Prefix("Another job.")))
    assert known_of(desk, 4, desk.tokenizer) == {}
    assert desk.report == {"followed": 0, "not_followed": {UNREAD: 3, CORRECTED: 1}}
    desk, theirs = desk_of(tmp_path / "c", bare), load_tokenizer(bare)
    theirs.chat_template = theirs.chat_template.replace("message.content", "message.content ~ ' and'")
    assert known_of(desk, 4, theirs) == {}
    assert desk.report["not_followed"] == {"the teacher's chat template writes the answer otherwise": 3, CORRECTED: 1}


def test_what_it_says_is_the_model_s_own_and_is_asked_once(bare: Path, tmp_path: Path) -> None:
    desk = desk_of(tmp_path / "a", bare)
    read = as_the_teacher_reads(desk, desk.tokenizer)
    asked = list(read.values())
    model = load_model(str(bare)).eval()
    top, own = said(desk, asked, "top5", likeliest(5)), said(desk, asked, "answer", of_the_answer)
    for row, e in enumerate(asked):
        with torch.no_grad():
            logp = model(input_ids=torch.tensor([e.ids])).logits[0, e.prompt - 1 : -1].log_softmax(-1)
        values, ids = logp.topk(5)
        torch.testing.assert_close(top[row][0].float(), values, rtol=2e-3, atol=2e-3)
        assert (top[row][1].long() == ids).float().mean() > 0.9  # ties may fall the other way
        assert own[row][1].tolist() == (logp.argmax(-1) == torch.tensor(e.ids[e.prompt :])).tolist()
        torch.testing.assert_close(own[row][0], logp[range(len(logp)), e.ids[e.prompt :]], rtol=1e-3, atol=1e-4)
    files = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "a").glob("*.safetensors")}
    assert len(files) == 2
    again = said(desk, asked, "top5", likeliest(5))
    assert all(torch.equal(a, b) for had, has in zip(top, again, strict=True) for a, b in zip(had, has, strict=True))
    assert files == {file.name: file.stat().st_mtime_ns for file in (tmp_path / "a").glob("*.safetensors")}
    said(desk, asked[:2], "top5", likeliest(5))
    assert len(list((tmp_path / "a").glob("*.safetensors"))) == 3, "other rows, or other tokens, are asked anew"


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    torch.set_num_threads(1)
