"""The engine of a server: llama.cpp's own over a socket, and the calls by which others are made to load."""

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

from infra.engines import load
from infra.engines.llamacpp import LlamaCpp
from infra.engines.openai import name_of
from infra.settings import SetupError
from tests.conftest import answering, living_in
from tests.infra.engines.test_engines import ASKED

REQUESTS = [{**request, "max_tokens": 6} for request in ASKED]


def llama_server(model: Path, alias: str) -> Any:
    """llama.cpp's server on a port of its own, as its binary would be started."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.model_alias, parameters.port = str(model), {alias}, 0
    parameters.n_ctx, parameters.n_parallel, parameters.verbosity, parameters.warmup = 4096, 4, 0, False
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(parameters)
    server.handle_completions({"prompt": [1], "n_predict": 1, "stream": False})
    return server


def said(engine: Any) -> list[tuple[Any, str, int]]:
    return [(r.message["content"], r.finish_reason, r.completion_tokens) for r in engine.chat(REQUESTS)]


def test_a_real_server_answers_as_the_engine_in_the_process_does(artifact: Callable[..., Path], tmp_path: Path) -> None:
    folder = artifact()
    own = LlamaCpp(folder)
    expected = said(own)
    own.close()
    server = llama_server(folder / "model.gguf", name_of(folder, "shop"))
    with living_in(tmp_path, SERVER=f"{server.listening_address}/v1", SERVER_FOLDER=str(tmp_path / "models")):
        engine = load(folder)
        assert engine.name == "openai" and said(engine) == expected
        (written,) = (tmp_path / "models").glob("shop-*")
        assert {file.name for file in written.iterdir()} == {file.name for file in folder.iterdir()}
        (long,) = engine.chat([{"messages": [{"role": "user", "content": "where " * 3000}]}])
        assert (long.finish_reason, long.completion_tokens) == ("length", 0)
        engine.close()
        assert not written.exists()


class Router(BaseHTTPRequestHandler):
    """What llama-server in router mode answers, with llama.cpp's real server behind each model that is loaded.

    Its binary starts a process for each; here it is an object, and a file that is no model fails as a process would.
    """

    models: ClassVar[Path]
    known: ClassVar[dict[str, dict[str, Any]]] = {}
    running: ClassVar[dict[str, Any]] = {}

    def do_GET(self) -> None:
        if self.path == "/props":
            self.reply({"role": "router"})
        elif self.path == "/models?reload=1":
            for folder in self.models.iterdir():
                if not folder.name.startswith("."):
                    self.known.setdefault(folder.name, {"value": "unloaded"})
            self.reply({"success": True})
        elif self.path == "/v1/models":
            self.reply({"data": [{"id": name, "status": status} for name, status in self.known.items()]})
        else:
            self.reply({"error": "not found"}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        name = body["model"]
        if self.path == "/models/load":
            if name not in self.known:
                self.reply({"error": {"message": "model is not found"}}, 404)
            elif name in self.running:
                self.reply({"error": {"message": "model is already running"}}, 400)
            else:
                try:
                    self.running[name] = llama_server(self.models / name / "model.gguf", name)
                    self.known[name] = {"value": "loaded"}
                except Exception:
                    self.known[name] = {"value": "unloaded", "failed": True}
                self.reply({"success": True})
        elif self.path == "/models/unload":
            self.known.pop(name), self.running.pop(name)
            self.reply({"success": True})
        else:
            answer = httpx.post(f"{self.running[name].listening_address}/v1/completions", json=body, timeout=60)
            self.reply(answer.json(), answer.status_code)

    def reply(self, said: Any, status: int = 200) -> None:
        text = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def router(tmp_path: Path) -> Iterator[type[Router]]:
    Router.models = tmp_path / "models"
    Router.known.clear(), Router.running.clear()
    with (
        answering(ThreadingHTTPServer(("127.0.0.1", 0), Router)) as address,
        living_in(tmp_path / "home", SERVER=f"{address}/v1", SERVER_FOLDER=str(Router.models)),
    ):
        yield Router


def test_two_versions_are_served_side_by_side_and_the_last_who_holds_one_unloads_it(
    router: type[Router], artifact: Callable[..., Path]
) -> None:
    one, two = artifact(candidate_id="one"), artifact(candidate_id="two")
    first, second, again = load(one), load(two), load(one)
    assert len(router.running) == 2 and said(first) == said(second) == said(again)
    first.close()
    assert len(router.running) == 2, "another still holds it"
    assert said(again)
    again.close()
    assert list(router.running) == [name_of(two, "shop")] and len(list(router.models.glob("shop-*"))) == 1
    second.close()
    assert not router.running


def test_a_model_that_the_server_cannot_load_is_said_and_leaves_nothing(
    router: type[Router], artifact: Callable[..., Path]
) -> None:
    good, bad = artifact(candidate_id="one"), artifact(candidate_id="two")
    (bad / "model.gguf").write_bytes(b"GGUF and then nothing")
    served = load(good)
    with pytest.raises(SetupError, match="cannot load shop-"):
        load(bad)
    assert said(served)
    served.close()


class VLLM(Router):
    """vLLM's answers, and what it was told; adapters on a base, and its weights in place."""

    told: ClassVar[list[tuple[str, Any]]] = []
    adapters: ClassVar[dict[str, str]] = {}

    def do_GET(self) -> None:
        if self.path == "/is_sleeping":
            self.reply({"is_sleeping": False})
        elif self.path == "/v1/models":
            self.reply({"data": [{"id": name} for name in ("current", *self.adapters)]})
        else:
            self.reply({"detail": "Not Found"}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or "null")
        if self.path == "/v1/completions":
            self.reply({"choices": [{"text": f"by {body['model']}", "finish_reason": "stop"}]})
            return
        self.told.append((self.path, body))
        if self.path == "/v1/load_lora_adapter":
            if not (Path(body["lora_path"]) / "adapter_config.json").exists():
                self.reply({"error": "No adapter found"}, 404)
                return
            self.adapters[body["lora_name"]] = body["lora_path"]
        if self.path == "/v1/unload_lora_adapter":
            del self.adapters[body["lora_name"]]
        self.reply({})


@pytest.fixture
def vllm(tmp_path: Path) -> Iterator[type[VLLM]]:
    VLLM.told.clear(), VLLM.adapters.clear()
    with (
        answering(ThreadingHTTPServer(("127.0.0.1", 0), VLLM)) as address,
        living_in(tmp_path / "home", SERVER=f"{address}/v1/", SERVER_FOLDER=str(tmp_path / "models")),
    ):
        yield VLLM


@pytest.fixture
def weights(bare: Path, tmp_path: Path) -> Callable[[str], Path]:
    """weights(kind): a folder of safetensors, or of an adapter."""

    def made(kind: str) -> Path:
        folder = tmp_path / f"{kind}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for file in bare.iterdir():
            if kind == "full" or "token" in file.name or file.suffix == ".jinja":
                (folder / file.name).write_bytes(file.read_bytes())
        if kind == "adapter":
            (folder / "adapter_config.json").write_text("{}")
        (folder / "flywheel.json").write_text(json.dumps({"workload": "my shop/1", "made": folder.name}))
        return folder

    return made


def test_adapters_are_loaded_beside_each_other(vllm: type[VLLM], weights: Callable[[str], Path]) -> None:
    one, two = (load(weights("adapter")) for _ in range(2))
    names = list(vllm.adapters)
    assert [r.message["content"] for e in (one, two) for r in e.chat(REQUESTS[:1])] == [f"by {n}" for n in names]
    assert all(name.startswith("my-shop-1-") for name in names) and len(set(names)) == 2
    one.close()
    assert list(vllm.adapters) == names[1:] and not Path(vllm.told[0][1]["lora_path"]).exists()
    two.close()


def test_full_weights_are_replaced_in_place_and_only_by_what_is_to_serve(
    vllm: type[VLLM], weights: Callable[[str], Path]
) -> None:
    first, other = load(weights("full"), replace=True), weights("full")
    assert [path for path, _ in vllm.told] == [
        "/sleep?level=2&mode=wait", "/wake_up?tags=weights", "/collective_rpc", "/wake_up?tags=kv_cache",
    ]  # fmt: skip
    assert first.chat(REQUESTS[:1])[0].message["content"] == "by current"
    with pytest.raises(SetupError, match="holds one set of weights"):
        load(other)
    second = load(other, replace=True)
    assert second.chat(REQUESTS[:1])
    with pytest.raises(RuntimeError, match="replaced"):
        first.chat(REQUESTS[:1])
    first.close(), second.close()


def test_a_server_that_is_away_or_reads_elsewhere_is_one_line(artifact: Callable[..., Path], tmp_path: Path) -> None:
    for folder, said in (("models", r":9/v1 does not answer"), ("", "SERVER_FOLDER is empty")):
        there = str(tmp_path / folder) if folder else ""
        with (
            living_in(tmp_path, SERVER="http://127.0.0.1:9/v1", SERVER_FOLDER=there),
            pytest.raises(SetupError, match=said),
        ):
            load(artifact())
