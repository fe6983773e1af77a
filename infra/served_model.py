"""A registered version as MLflow runs it: `mlflow models serve -m models:/NAME@champion`, `mlflow.pyfunc.load_model`.

This very file is copied into each version (MLflow's models from code: nothing is pickled). It needs what the version's
requirements.txt pins and nothing of Flywheel, which no package index has: whoever serves it has an MLflow server and
PyPI. It therefore says once more, in short, what `engines/` and `prefix.py` say: how a request is read and an answer
written; tests hold the two together.

A request is OpenAI's, `{"messages", "tools"?, "max_tokens"?}`, and so is the answer. `mlflow models serve` hands a body
with `messages` to any model as it is and returns what the model says unwrapped, so a plain PythonModel speaks OpenAI's
API; other fields of the request are left off by the signature, and the answer comes whole. MLflow's ChatModel is
deprecated and its data classes drop what they do not know (parts of a content, fields of a schema); its successor,
ResponsesAgent, speaks another API.

A request brings the system prompt and the tools that the student has learned, or neither; there is no teacher here
whom one with others could be left to. `finish_reason` is `length` with no token where a request is longer than the
context, `abstained` where a classifier is not sure enough. A frame of several requests gets a list of answers.
"""

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pandas as pd  # type: ignore[import-untyped]
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

Request = dict[str, Any]
Message = dict[str, Any]

SUMS, MODEL = "SHA256SUMS", "model"
SLOTS, SLOT_TOKENS, MAX_TOKENS = 8, 4096, 512
CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


def verify(root: Path) -> None:
    """Raise unless every listed file is what was registered, byte for byte, and `model` has none that is not listed."""
    lines = [line.split("  ", 1) for line in (root / SUMS).read_text().splitlines()]
    listed = {name: digest for digest, name in lines}
    there = {file.relative_to(root).as_posix() for file in (root / MODEL).rglob("*") if file.is_file()}
    for name in sorted(listed.keys() | there):
        if name not in listed or not (root / name).is_file():
            state = "was not registered" if name not in listed else "is missing"
            raise MlflowException(f"{name} {state}; {SUMS} lists what was: download the version again")
        with (root / name).open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != listed[name]:
            raise MlflowException(
                f"{name} has sha256 {found[:12]}, registered was {listed[name][:12]}; download the version again"
            )


class Reply(NamedTuple):
    message: Message
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


class Served(PythonModel):  # type: ignore[misc]
    """The folder `model` beside this file, once it is known to be what was registered."""

    def load_context(self, context: Any) -> None:
        root = Path(__file__).parent
        verify(root)
        folder = root / MODEL
        self.manifest = json.loads((folder / "flywheel.json").read_text())
        engine = Gguf if (folder / "model.gguf").exists() else Labels if (folder / "model.onnx").exists() else Weights
        self.engine = engine(folder, self.manifest)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        rows = model_input.to_dict("records")
        requests = [{name: value for name, value in row.items() if given(value)} for row in rows]
        stripped = [strip(request, self.manifest.get("prefix")) for request in requests]
        answers = [self.response(reply) for reply in self.engine.chat(stripped)]
        return answers[0] if len(answers) == 1 else answers

    def response(self, reply: Reply) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{uuid4().hex}", "object": "chat.completion", "created": int(time.time()),
            "model": f"flywheel:{self.manifest['workload']}",
            "choices": [{"index": 0, "message": reply.message, "finish_reason": reply.finish_reason}],
            "usage": {
                "prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens,
                "total_tokens": reply.prompt_tokens + reply.completion_tokens,
            },
        }  # fmt: skip


def given(value: Any) -> bool:
    """Whether a cell holds something: frames have NaN where a row says nothing."""
    return value is not None and not (isinstance(value, float) and value != value)


def strip(request: Request, prefix: dict[str, Any] | None) -> Request:
    """The request without the system prompt and the tools that the student has learned."""
    messages, tools = list(request["messages"]), list(request.get("tools") or [])
    first = messages[0] if messages else {}
    system = text_of(first.get("content")) if first.get("role") in ("system", "developer") else None
    if prefix is None or (system is None and not tools):
        return request
    if [system, tools] != [prefix["system"], prefix["tools"]]:
        raise MlflowException.invalid_parameter_value(
            "the request has another system prompt or other tools than the student has learned; send those (they are "
            f"in {MODEL}/flywheel.json), or neither"
        )
    return {**request, "messages": messages[1:] if system is not None else messages, "tools": None}


def text_of(content: Any) -> str | None:
    """Text of a message's content, parts joined; None where there is none or a part is no text."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    parts = [part.get("text") if isinstance(part, dict) else part for part in content]
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if len(texts) == len(parts) else None


def for_template(message: Message) -> Message:
    """The message as chat templates expect it: content a string, each call's arguments an object where they parse."""
    plain = {**message, "content": text_of(message.get("content")) or ""}
    calls = plain.pop("tool_calls", None)
    if calls:
        plain["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": as_object(call["function"]["arguments"])}}
            for call in calls
        ]
    return plain


def as_object(arguments: Any) -> Any:
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments


def parse(text: str) -> Message:
    """What the model wrote, as an assistant message. A call that is no JSON object with a name stays text."""
    calls = []
    for match in CALL.finditer(text):
        try:
            called = json.loads(match[1])
            name, arguments = called["name"], called.get("arguments", {})
        except (ValueError, KeyError, TypeError, AttributeError):
            return {"role": "assistant", "content": text.strip()}
        written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        calls.append(fresh({"type": "function", "function": {"name": str(name), "arguments": written}}))
    words = CALL.sub("", text).strip()
    if not calls:
        return {"role": "assistant", "content": words}
    return {"role": "assistant", "content": words or None, "tool_calls": calls}


def fresh(call: dict[str, Any]) -> dict[str, Any]:
    return {"id": f"call_{uuid4().hex[:12]}", **call}


def said(request: Request) -> str | None:
    """What a request says, as a classifier reads it; None where a part of it is no text."""
    parts = []
    for message in request["messages"]:
        content = text_of(message.get("content"))
        if content is None and message.get("content") is not None:
            return None
        calls = [call["function"] for call in message.get("tool_calls") or []]
        words = [content or "", *(f"{f['name']} {f['arguments']}" for f in calls)]
        parts.append((message["role"], " ".join(word for word in words if word)))
    tools = [tool.get("function", tool).get("name", "") for tool in request.get("tools") or []]
    if len(parts) == 1 and not tools:
        return parts[0][1]
    return "\n".join([*([f"tools: {', '.join(tools)}"] if tools else []), *(f"{role}: {text}" for role, text in parts)])


def threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


class Speaker:
    """A causal model's way to read and write; `requests` come without the prefix."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        from transformers import AutoTokenizer

        self.tokenizer, self.manifest = AutoTokenizer.from_pretrained(str(folder)), manifest
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def prompt(self, request: Request) -> list[int]:
        text = self.tokenizer.apply_chat_template(
            [for_template(message) for message in request["messages"]], tools=request.get("tools") or None,
            add_generation_prompt=True, tokenize=False,
        )  # fmt: skip
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def limit(self, request: Request) -> int:
        asked = request.get("max_completion_tokens") or request.get("max_tokens")
        return int(asked or self.manifest.get("max_tokens") or MAX_TOKENS)


class Gguf(Speaker):
    """llama.cpp, up to SLOTS requests at once."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        super().__init__(folder, manifest)
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(folder / "model.gguf")
        trained = self.tokenizer.model_max_length
        self.context = min(trained, SLOT_TOKENS) if trained < 10**9 else SLOT_TOKENS
        parameters.n_ctx, parameters.n_parallel = self.context * SLOTS, SLOTS
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads()
        parameters.cache_ram_mib = 0
        parameters.verbosity = 0
        parameters.warmup = False
        self.server = xllamacpp.Server(parameters)
        # Closed before its loop has begun, the server would never end: one token shows that it runs.
        self.server.handle_completions({"prompt": [self.tokenizer.eos_token_id], "n_predict": 1, "stream": False})

    def chat(self, requests: Sequence[Request]) -> list[Reply]:
        with ThreadPoolExecutor(SLOTS) as pool:
            return list(pool.map(self.answer, requests))

    def answer(self, request: Request) -> Reply:
        prompt = self.prompt(request)
        room = self.context - len(prompt)
        if room < 1:
            return Reply({"role": "assistant", "content": ""}, "length", len(prompt), 0)
        body = {
            "prompt": prompt, "n_predict": min(self.limit(request), room), "temperature": 0.0, "cache_prompt": True,
            "stream": False,
        }  # fmt: skip
        answer = self.server.handle_completions(body)
        if "choices" not in answer:
            raise MlflowException(f"llama.cpp: {answer.get('error', answer)}")
        choice, usage = answer["choices"][0], answer["usage"]
        message = parse(choice["text"])
        reason = "tool_calls" if message.get("tool_calls") else choice["finish_reason"]
        return Reply(message, reason, usage["prompt_tokens"], usage["completion_tokens"])


class Weights(Speaker):
    """Safetensors by transformers, one request at a time."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        super().__init__(folder, manifest)
        import torch
        from transformers import AutoModelForCausalLM

        device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True)
        self.model = loaded.to(device).eval()
        self.turn = threading.Lock()

    def chat(self, requests: Iterable[Request]) -> list[Reply]:
        return [self.answer(request) for request in requests]

    def answer(self, request: Request) -> Reply:
        import torch

        prompt, end = self.prompt(request), self.tokenizer.eos_token_id
        ids = torch.tensor([prompt], device=self.model.device)
        with self.turn, torch.inference_mode():
            out = self.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=self.limit(request),
                do_sample=False, pad_token_id=self.tokenizer.pad_token_id,
            )  # fmt: skip
        written = out[0, len(prompt) :].tolist()
        ended = end in written
        answer = written[: written.index(end)] if ended else written
        message = parse(self.tokenizer.decode(answer, skip_special_tokens=False))
        reason = "tool_calls" if message.get("tool_calls") else "stop" if ended else "length"
        return Reply(message, reason, len(prompt), len(answer) + ended)


class Labels:
    """A classifier by ONNX Runtime, which answers with a label or abstains."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        self.labels, self.threshold = manifest["labels"], manifest["threshold"]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(manifest["max_length"], direction="left")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads()
        self.session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def chat(self, requests: Iterable[Request]) -> list[Reply]:
        return [self.answer(request) for request in requests]

    def answer(self, request: Request) -> Reply:
        import numpy as np

        text = said(request)
        ids = self.tokenizer.encode(text or "").ids
        said_ids, zeros = np.array([ids], np.int64), np.zeros((1, len(ids)), np.int64)
        inputs = {"input_ids": said_ids, "attention_mask": zeros + 1}
        names = [one.name for one in self.session.get_inputs()]
        (logits,) = self.session.run(None, {name: inputs.get(name, zeros) for name in names})
        risen = np.exp(logits[0] - logits[0].max())
        best = int(risen.argmax())
        if text is None or risen[best] / risen.sum() < self.threshold:
            return Reply({"role": "assistant", "content": ""}, "abstained", len(ids), 0)
        label = self.labels[best]
        calls = [fresh(call) for call in label.get("tool_calls") or []]
        message = {**label, "tool_calls": calls} if calls else dict(label)
        tokens = max(1, len(self.tokenizer.encode(said({"messages": [label]}) or "").ids))
        return Reply(message, "tool_calls" if calls else "stop", len(ids), tokens)


set_model(Served())
