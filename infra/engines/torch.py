"""The torch engine: any Hugging Face causal LM, quantized by compressed-tensors or not. The fallback; slow on a CPU."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.engines.chat import load_tokenizer, parse, render
from infra.engines.engine import Engine, Progress, Reply
from infra.settings import settings


class Torch(Engine):
    """Answers in batches, left padded."""

    name = "torch"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.tokenizer = load_tokenizer(folder)
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(settings().cores)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(device).eval()
        self.turn = threading.Lock()

    def chat(
        self, requests: Sequence[dict[str, Any]], progress: Progress | None = None, parallel: int = 8
    ) -> list[Reply]:
        prompts = [render(self.tokenizer, r["messages"], r.get("tools"), prompt=True) for r in requests]
        order = sorted(range(len(requests)), key=lambda i: len(prompts[i]))
        replies: dict[int, Reply] = {}
        for start in range(0, len(order), parallel):
            group = order[start : start + parallel]
            limits = [self.max_tokens(requests[i]) for i in group]
            replies |= zip(group, self._generate([prompts[i] for i in group], limits), strict=True)
            if progress:
                progress(len(replies), len(requests), "answers")
        return [replies[i] for i in range(len(requests))]

    def _generate(self, prompts: list[list[int]], limits: list[int]) -> list[Reply]:
        import torch

        started = time.monotonic()
        width, pad = max(map(len, prompts)), self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.model.device)
        with self.turn, torch.inference_mode():
            out = self.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=max(limits), do_sample=False, pad_token_id=pad
            )
        elapsed = 1000 * (time.monotonic() - started)
        return [
            self._reply(written[:limit], len(prompt), elapsed)
            for prompt, limit, written in zip(prompts, limits, out[:, width:].tolist(), strict=True)
        ]

    def _reply(self, written: list[int], prompt_tokens: int, elapsed: float) -> Reply:
        end = self.tokenizer.eos_token_id
        ended = end in written
        answer = written[: written.index(end)] if ended else written
        message = parse(self.tokenizer.decode(answer, skip_special_tokens=False))
        reason = "tool_calls" if message.get("tool_calls") else "stop" if ended else "length"
        return Reply(message, reason, prompt_tokens, len(answer) + ended, None, elapsed)

    def surprise(
        self, requests: Sequence[dict[str, Any]], answers: Sequence[dict[str, Any]]
    ) -> list[float | None] | None:
        import torch

        found: list[float | None] = []
        for request, answer in zip(requests, answers, strict=True):
            prompt = render(self.tokenizer, request["messages"], request.get("tools"), prompt=True)
            whole = render(self.tokenizer, [*request["messages"], answer], request.get("tools"))
            if whole[: len(prompt)] != prompt or not prompt:
                found.append(None)
                continue
            ids = torch.tensor([whole], device=self.model.device)
            with self.turn, torch.inference_mode():
                said = self.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
            found.append(-float(said.gather(1, ids[0, len(prompt) :, None]).sum()))
        return found

    def close(self) -> None:
        del self.model
