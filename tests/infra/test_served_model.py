"""A registered version as a platform team serves it: by MLflow alone, with the answers of our own engines."""

import contextlib
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra import registry
from infra.engines import chat, labels, load
from infra.prefix import Prefix, text_of
from infra.settings import settings
from tests.conftest import living_in
from tests.mlflow_server import free_port, started
from tests.models import PREFIX

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow's, of its own type hints
    from mlflow.exceptions import MlflowException

    from infra import served_model

Make = Callable[..., Path]
MESSAGES, TOOLS = PREFIX.restore([{"role": "user", "content": "where is order 48213"}])
GOLDEN: dict[str, Any] = {"model": "shop", "messages": MESSAGES, "tools": TOOLS, "temperature": 0}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One home for the file: MLflow takes seconds to make its tables."""
    with living_in(tmp_path_factory.mktemp("home"), TEACHER="") as folder:
        yield folder


def registered(workload: str, folder: Path) -> str:
    version, _ = registry.register(workload, folder, metrics={}, tags={}, parameters={}, run_name="test")
    registry.promote(workload, version)
    return version


def of_engine(folder: Path, *requests: dict[str, Any]) -> list[dict[str, Any]]:
    """What our engine answers, without the ids of calls."""
    engine = load(folder)
    with contextlib.closing(engine):
        replies = engine.chat([engine.strip(request) or request for request in requests])
        return [
            {
                "message": without_ids(reply.message), "finish_reason": reply.finish_reason,
                "usage": [reply.prompt_tokens, reply.completion_tokens],
            }
            for reply in replies
        ]  # fmt: skip


def told(response: dict[str, Any]) -> dict[str, Any]:
    """A response in the same form."""
    (choice,), usage = response["choices"], response["usage"]
    return {
        "message": without_ids(choice["message"]), "finish_reason": choice["finish_reason"],
        "usage": [usage["prompt_tokens"], usage["completion_tokens"]],
    }  # fmt: skip


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    calls = [{k: v for k, v in call.items() if k != "id"} for call in message.get("tool_calls", [])]
    return {**message, **({"tool_calls": calls} if calls else {})}


def loaded(workload: str) -> Any:
    import mlflow

    mlflow.set_tracking_uri(settings().mlflow_uri)
    return mlflow.pyfunc.load_model(f"models:/{workload}@champion", suppress_warnings=True)


def test_a_version_that_did_not_pass_loads_as_one_that_did(home: Path, artifact: Make) -> None:
    import mlflow

    made, tags = artifact(), {registry.VERDICT: "reject"}
    about = {"metrics": {}, "tags": tags, "parameters": {}, "run_name": "test"}
    version, _ = registry.register("failed", made, **about, shared=True)
    assert registry.version("failed", version).folder.joinpath("model.gguf").samefile(made / "model.gguf")
    mlflow.set_tracking_uri(settings().mlflow_uri)
    with pytest.raises(MlflowException, match="alias champion not found"):
        loaded("failed")
    model = mlflow.pyfunc.load_model(f"models:/failed/{version}", suppress_warnings=True)
    assert [told(model.predict(GOLDEN))] == of_engine(made, GOLDEN)


def test_mlflow_serves_the_champion_as_our_engine_does(home: Path, artifact: Make, tmp_path: Path) -> None:
    made = artifact()
    registered("served", made)
    address = f"127.0.0.1:{free_port()}"
    command = [
        sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/served@champion", "--env-manager", "local",
        "--host", "127.0.0.1", "--port", address.rpartition(":")[2],
    ]  # fmt: skip
    # A clean environment: nothing of ours can be imported, and nothing may be unpickled.
    environment = {
        "MLFLOW_TRACKING_URI": settings().mlflow_uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "PYTHONPATH": str(without_flywheel(tmp_path)), "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # as in an environment that is activated
    }  # fmt: skip
    with started(command, tmp_path / "log", f"http://{address}/ping", environment, cwd=tmp_path):
        answer = httpx.post(f"http://{address}/invocations", json=GOLDEN, timeout=120)
        assert answer.status_code == 200, answer.text
        said = answer.json()
        other = {**GOLDEN, "messages": [{"role": "system", "content": "You are a pirate."}, MESSAGES[-1]]}
        refused = httpx.post(f"http://{address}/invocations", json=other, timeout=120)
    assert [told(said)] == of_engine(made, GOLDEN)
    assert said["object"] == "chat.completion" and said["model"] == "flywheel:shop"
    assert refused.status_code == 400 and "another system prompt" in refused.json()["message"]


def without_flywheel(folder: Path) -> Path:
    """A folder for PYTHONPATH that makes an import of our packages fail."""
    for room in ("infra", "tasks", "flows", "quant"):
        (folder / "clean" / room).mkdir(parents=True)
        (folder / "clean" / room / "__init__.py").write_text("raise ImportError('there is no Flywheel here')")
    return folder / "clean"


def test_several_requests_get_several_answers_each_with_its_own_limit(home: Path, artifact: Make) -> None:
    made = artifact()
    registered("several", made)
    import pandas as pd

    requests = [{**GOLDEN, "max_tokens": 3}, {"messages": [MESSAGES[-1]], "tools": None}]
    answers = loaded("several").predict(pd.DataFrame(requests))
    assert [told(answer) for answer in answers] == of_engine(made, *requests)
    assert answers[0]["usage"]["completion_tokens"] <= 3 and answers[0]["choices"][0]["finish_reason"] == "length"


def test_the_example_that_is_registered_can_be_asked(home: Path, artifact: Make) -> None:
    registered("example", artifact())
    model = loaded("example")
    assert Prefix.of(model.input_example) == PREFIX
    assert model.predict(model.input_example)["choices"][0]["message"]["role"] == "assistant"


def test_a_classifier_answers_and_abstains_as_its_engine_does(home: Path, labelled: Make) -> None:
    made = labelled(prefix=None)
    registered("labels", made)
    model = loaded("labels")
    asked = ["order parcel", "refund and", "track order track", "and and", "?", [{"type": "image_url"}]]
    requests = [{"messages": [{"role": "user", "content": content}]} for content in asked]
    answers = [told(model.predict(request)) for request in requests]
    assert answers == of_engine(made, *requests)
    assert {answer["finish_reason"] for answer in answers} == {"stop", "tool_calls", "abstained"}


def test_safetensors_are_served_too(home: Path, bare: Path, tmp_path: Path) -> None:
    made = tmp_path / "weights"
    shutil.copytree(bare, made)
    (made / "flywheel.json").write_text(json.dumps({"workload": "shop", "prefix": PREFIX.to_json(), "max_tokens": 8}))
    registered("weights", made)
    assert [told(loaded("weights").predict(GOLDEN))] == of_engine(made, GOLDEN)


@pytest.mark.parametrize("damage", ["byte", "code", "file-more", "file-less"])
def test_what_is_not_what_was_registered_is_refused_before_it_is_loaded(
    home: Path, artifact: Make, damage: str
) -> None:
    workload = f"damaged-{damage}"
    registered(workload, artifact(damage=damage))
    champion = registry.champion(workload)
    assert champion is not None
    weights = champion.folder / "model.gguf"
    if damage == "byte":
        with weights.open("r+b") as file:
            file.seek(-1, 2)
            last = file.read(1)
            file.seek(-1, 2)
            file.write(bytes([last[0] ^ 1]))
    elif damage == "code":
        with (champion.folder.parent / "served_model.py").open("a") as file:
            file.write("\n")
    elif damage == "file-more":
        (champion.folder / "added.jinja").write_text("{{ messages }}")
    else:
        (champion.folder / "tokenizer.json").unlink()
    with pytest.raises(MlflowException, match="download the version again"):
        loaded(workload)


TEXTS = st.text(max_size=12)
PARTS = st.lists(st.one_of(TEXTS, st.fixed_dictionaries({"text": TEXTS}), st.just({"type": "image_url"})), max_size=3)
CONTENTS = st.one_of(st.none(), TEXTS, PARTS)
CALLS = st.lists(
    st.fixed_dictionaries({
        "id": TEXTS, "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {"name": TEXTS, "arguments": st.sampled_from(["{}", '{"a": [1]}', "no JSON", "3"])}
        ),
    }),
    max_size=2,
)  # fmt: skip
SPOKEN = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]), "content": CONTENTS},
    optional={"tool_calls": CALLS},
)
TOOLS_GIVEN = st.one_of(st.none(), st.just([]), st.lists(st.sampled_from([*TOOLS, {"name": "other"}]), max_size=2))


@given(messages=st.lists(SPOKEN, min_size=1, max_size=3), tools=TOOLS_GIVEN)
def test_it_reads_as_our_engines_do(messages: list[dict[str, Any]], tools: Any) -> None:
    request = {"messages": messages, "tools": tools}
    assert [served_model.for_template(m) for m in messages] == [chat._for_template(m) for m in messages]
    assert [served_model.text_of(m["content"]) for m in messages] == [text_of(m["content"]) for m in messages]
    assert served_model.said(request) == labels.said(request)
    for prefix in (PREFIX, Prefix.of(request)):
        expected = prefix.strip(messages, tools)
        if expected is not None:
            stripped = served_model.strip(request, prefix.to_json())
            assert (stripped["messages"], stripped["tools"] or None) == expected
        elif Prefix.of(request) == Prefix(None):
            assert served_model.strip(request, prefix.to_json()) == request
        else:
            with pytest.raises(MlflowException, match="neither"):
                served_model.strip(request, prefix.to_json())


@given(pieces=st.lists(st.one_of(TEXTS, st.sampled_from([
    '<tool_call>{"name": "a", "arguments": {"b": "ü"}}</tool_call>', '<tool_call>{"name": 3}</tool_call>',
    "<tool_call>{}</tool_call>", "<tool_call>[1]</tool_call>", '<tool_call>{"name": "a", "arguments": "x"}</tool_call>',
    "<tool_call>", "</tool_call>", "\n",
])), max_size=4))  # fmt: skip
def test_it_writes_as_our_engines_do(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert without_ids(served_model.parse(text)) == without_ids(chat.parse(text))
