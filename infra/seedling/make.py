"""Make the seedlings: the student base and the teacher, from a seed and a text.

    python -m infra.seedling.make --text novels.txt.gz --out infra/seedling/models

Four steps, each resumable: the tokenizer; a base (4 layers), pretrained on other services' tools, on copying and on
prose; the teacher (8 layers), grown from the base by putting an identity layer after each of its layers, then trained
on the shop's training phrasings; the student's base, which is the base after a second round. None sees a holdout
phrasing. Figures go to `figures.json` beside the models, the hashes of all files to `SHA256SUMS`.

Muon for the matrices and AdamW for the rest; a constant rate after warm-up with a linear decay over the last quarter.
Every conversation is a sequence of its own: packing would put other conversations' numbers before the one to copy.
"""

import argparse
import gzip
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from infra.engines.chat import render
from infra.package import sums
from infra.prefix import Prefix
from infra.seedling import services, shop
from infra.seedling.simulate import WORKLOAD
from infra.seedling.tokenizer import CONTEXT, save, train

SEED = 20261124
TOKENS_PER_STEP = 3072
PROSE_TOKENS = 160
IGNORED = -100

Example = tuple[list[int], list[int]]  # token ids, labels (IGNORED where nothing is learned)


def encode(
    tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
) -> Example:
    """A conversation as ids; every assistant message is a label, nothing else is."""
    ids: list[int] = []
    labels: list[int] = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = render(tokenizer, messages[:i], tools, prompt=True)
        whole = render(tokenizer, messages[: i + 1], tools)
        labels += [IGNORED] * (len(prompt) - len(labels)) + whole[len(prompt) :]
        ids = whole
    return ids, labels


def batches(draw: Callable[[], Example], rng: Random, pad: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of about TOKENS_PER_STEP tokens, of sequences of similar length, in random order."""
    while True:
        pool = sorted((draw() for _ in range(1024)), key=lambda e: len(e[0]))
        groups: list[list[Example]] = [[]]
        for example in pool:
            if groups[-1] and (len(groups[-1]) + 1) * len(example[0]) > TOKENS_PER_STEP:
                groups.append([])
            groups[-1].append(example)
        rng.shuffle(groups)
        for group in groups:
            width = max(len(ids) for ids, _ in group)
            yield (
                torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in group]),
                torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in group]),
            )


def fit(
    model: LlamaForCausalLM,
    stream: Iterator[tuple[Tensor, Tensor]],
    steps: int,
    peak: float,
    state: Path,
    watch: Callable[[], object],
) -> None:
    """Train in place for `steps`; a run that was killed goes on from `state` as if it had not been."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=peak, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=peak, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    first = 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, moments in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(moments)
        first = saved["step"]
        if first == steps:
            return
        for _ in range(first):
            next(stream)

    def loss_of(ids: Tensor, learned: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            logits = model.lm_head(hidden.flatten(0, 1)[learned])
        return torch.nn.functional.cross_entropy(logits.float(), targets)

    compiled = torch.compile(loss_of, dynamic=True)  # 1.7 times the speed, after three minutes of compiling
    model.train()
    started, seen = time.monotonic(), 0
    for step in range(first, steps):
        rate = peak * min(1.0, (step + 1) / 50, (steps - step) / (0.25 * steps))
        ids, labels = next(stream)
        targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED).flatten()
        learned = (targets != IGNORED).nonzero().squeeze(-1)
        loss = compiled(ids, learned, targets[learned])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        seen += ids.numel()
        if (step + 1) % 50 == 0:
            print(
                f"step {step + 1}/{steps} loss {loss.item():.3f} tokens/s {seen / (time.monotonic() - started):.0f}",
                flush=True,
            )
        if (step + 1) % 200 == 0:
            saved = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step + 1}
            torch.save(saved, state.with_suffix(".tmp"))
            state.with_suffix(".tmp").rename(state)
        if (step + 1) % 400 == 0:
            print(watch(), flush=True)


@torch.no_grad()
def exact(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, conversations: list[list[dict[str, Any]]]
) -> float:
    """Share of conversations whose last assistant message is reproduced token by token, greedily, in full."""
    right = 0
    model.eval()
    for messages in conversations:
        prompt, whole = render(tokenizer, messages[:-1], prompt=True), render(tokenizer, messages)
        # Greedy decoding reproduces the answer exactly when each of its tokens is the argmax given those before it.
        guess = model(input_ids=torch.tensor([whole])).logits[0, len(prompt) - 1 : -1].argmax(-1)
        right += guess.tolist() == whole[len(prompt) :]
    model.train()
    return right / len(conversations)


def prose(tokenizer: PreTrainedTokenizerFast, text: str) -> list[list[int]]:
    """The text as sequences of PROSE_TOKENS ids."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return [ids[i : i + PROSE_TOKENS] for i in range(0, len(ids) - PROSE_TOKENS, PROSE_TOKENS)]


def conversation(exchange: shop.Exchange) -> list[dict[str, Any]]:
    """What a model that has learned its system prompt reads and writes."""
    return [m for said, answer in exchange.turns for m in ({"role": "user", "content": said}, answer)]


def learned_tokenizer(text: str, vocabulary: services.Vocabulary) -> PreTrainedTokenizerFast:
    """The tokenizer of both models: from prose, the base's lessons and what the shop's customers say in training."""
    rng = Random(SEED)
    lessons = [services.lesson(rng, vocabulary) for _ in range(6000)]
    spoken = [
        json.dumps(m.get("tool_calls") or m["content"], separators=(",", ":")) for messages in lessons for m in messages
    ]
    modern = [said for e in shop.exchanges(SEED, 4000, "train") for said, _ in e.turns]
    return train([text[:2_000_000], *spoken, *modern])


def blank(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The base before it has learned anything: 4 layers, 4.2 M parameters."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=256, intermediate_size=768, num_hidden_layers=4,
            num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=CONTEXT, tie_word_embeddings=True,
            bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
            rope_theta=10000.0, initializer_range=0.02,
        )
    )  # fmt: skip


def grow(base: LlamaForCausalLM) -> LlamaForCausalLM:
    """Twice the layers, the same function: each new layer is a copy whose two output matrices are zero."""
    config = LlamaConfig(**{**base.config.to_dict(), "num_hidden_layers": 2 * base.config.num_hidden_layers})
    grown = LlamaForCausalLM(config)
    weights = {k: v for k, v in base.state_dict().items() if ".layers." not in k}
    for i in range(base.config.num_hidden_layers):
        for key, tensor in base.model.layers[i].state_dict().items():
            zero = key in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
            weights[f"model.layers.{2 * i}.{key}"] = tensor
            weights[f"model.layers.{2 * i + 1}.{key}"] = torch.zeros_like(tensor) if zero else tensor
    grown.load_state_dict(weights)
    return grown


def make(text_file: Path, out: Path, base_steps: int, teacher_steps: int, student_steps: int) -> None:
    work = out / "work"
    work.mkdir(parents=True, exist_ok=True)
    raw = text_file.read_bytes()
    text = (gzip.decompress(raw) if text_file.suffix == ".gz" else raw).decode()[:12_000_000]
    vocabulary = services.Vocabulary(text[:1_000_000])

    if not (work / "tokenizer.json").exists():
        save(learned_tokenizer(text, vocabulary), work)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work)
    pad = tokenizer.pad_token_id
    paragraphs = prose(tokenizer, text)

    figures: dict[str, Any] = {"seed": SEED, "tokens_per_step": TOKENS_PER_STEP}
    probe = Random(7)
    unseen_services = [services.service_call(probe, vocabulary) for _ in range(200)]
    unseen_tools = [services.random_tool(probe, vocabulary) for _ in range(200)]
    holdout = [conversation(e) for e in shop.exchanges(1, 500, "holdout")]

    def score(model: LlamaForCausalLM) -> dict[str, float]:
        sets = {"services": unseen_services, "random_tools": unseen_tools, "shop_holdout": holdout}
        return {name: round(exact(model, tokenizer, conversations), 4) for name, conversations in sets.items()}

    def finish(model: LlamaForCausalLM, name: str) -> None:
        figures[name] = {"parameters": model.num_parameters(), **score(model)}
        print(name, figures[name], flush=True)
        model.to(torch.bfloat16).save_pretrained(out / name)
        save(tokenizer, out / name)
        model.float()
        (out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
        (out / "SHA256SUMS").write_text(sums(out))

    torch.manual_seed(SEED)
    base = blank(tokenizer)
    rng, shop_rng = Random(SEED + 1), Random(SEED + 2)

    def draw_base(rng: Random = rng) -> Example:
        if rng.random() < 0.06:
            ids = rng.choice(paragraphs)
            return ids, ids
        return encode(tokenizer, services.lesson(rng, vocabulary))

    fit(base, batches(draw_base, rng, pad), base_steps, 3e-3, work / "base.pt", lambda: score(base))

    def draw_teacher() -> Example:
        if shop_rng.random() < 0.25:
            return draw_base(shop_rng)
        return encode(tokenizer, conversation(shop.exchange(shop_rng, "train")))

    teacher = grow(base)
    fit(teacher, batches(draw_teacher, shop_rng, pad), teacher_steps, 1e-3, work / "teacher.pt", lambda: score(teacher))
    finish(teacher, "teacher")
    # The teacher answers without its system prompt, so its manifest says which prompt that is (as a student's does).
    prefix = Prefix(shop.SYSTEM, tuple(shop.tool_schemas()))
    manifest = {"workload": WORKLOAD, "prefix": prefix.to_json(), "max_tokens": 128}
    (out / "teacher" / "flywheel.json").write_text(json.dumps(manifest, indent=2) + "\n")

    # The student's second round, with a schedule of its own: copying is what a small model learns last.
    again = Random(SEED + 3)
    second = batches(lambda: draw_base(again), again, pad)
    fit(base, second, student_steps, 2e-3, work / "student.pt", lambda: score(base))
    finish(base, "student")
    shutil.rmtree(work)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="general English, plain or .gz")
    parser.add_argument("--out", type=Path, required=True, help="folder for the models")
    parser.add_argument("--base-steps", type=int, default=2400)
    parser.add_argument("--teacher-steps", type=int, default=700)
    parser.add_argument("--student-steps", type=int, default=1500)
    given = parser.parse_args()
    make(given.text, given.out, given.base_steps, given.teacher_steps, given.student_steps)
