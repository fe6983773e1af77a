"""Pruning: what may go without a trace goes, what matters is found as by trying, and what is left is a plain model."""

from copy import deepcopy
from math import lcm
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from quant import QuantError, export, quantize
from quant.anatomy import blocks, embedding, head, norms, tied
from quant.calibrate import Batch
from quant.cutting import Sizes, cut_blocks, cut_channels, sizes_of
from quant.importance import blocks_to_keep, channel_shares, contributions, loss, reads_of
from quant.methods import GPTQ, RTN
from quant.pruning import Prune, absorb, prune
from tests.quant.architectures import batches as tokens
from tests.quant.architectures import build, distance, says
from tests.quant.exports.test_gguf import check_against_llama_cpp, check_what_gguf_reads

PLAIN = ["llama", "mistral", "qwen2", "qwen3"]
HALVES = [Prune(layers=0.5), Prune(heads=0.5), Prune(mlp=0.5), Prune(hidden=0.5)]


def part(block: nn.Module, name: str) -> Any:
    return block.get_submodule(name)


@torch.no_grad()
def with_idle(model: nn.Module, spec: Prune) -> nn.Module:
    """`model` with as many parts as the spec takes away changed so that they do nothing: every second, if it can be."""
    width = sizes_of(model).group
    table, top = embedding(model), head(model)
    for i, (_, block) in enumerate(blocks(model)):
        if spec.mlp < 1:
            part(block, "mlp.down_proj").weight[:, 1:65:2] = 0
        if spec.heads < 1:
            part(block, "self_attn.o_proj").weight[:, :width] = 0
        if spec.layers < 1 and i % 2:
            part(block, "mlp.down_proj").weight.zero_()
            part(block, "self_attn.o_proj").weight.zero_()
        if spec.hidden < 1:
            for name in ("mlp.down_proj", "self_attn.o_proj"):
                part(block, name).weight[1::2] = 0
    if spec.hidden < 1:
        table.weight[:, 1::2] = 0  # type: ignore[index]
        top.weight[:, 1::2] = 0  # type: ignore[index, union-attr]
    return model


@torch.no_grad()
def own_words(model: nn.Module) -> list[Batch]:
    """Prompts of four tokens, and what the model itself says to them."""
    ids = tokens()[0]["input_ids"][:, :4]
    for _ in range(16):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    answer = (torch.arange(20) >= 4).expand_as(ids)
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "loss_mask": answer}]


@pytest.mark.parametrize("name", [*PLAIN, "gemma", "gemma3_text"])
def test_all_kept_is_the_same_to_the_bit(name: str) -> None:
    model = build(name)
    same = prune(model, Prune(), tokens())
    assert torch.equal(says(same), says(model)) and tied(same) == tied(model)
    assert same.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("spec", HALVES, ids=str)
@pytest.mark.parametrize("name", PLAIN)
def test_parts_that_do_nothing_go_first_and_nothing_is_missing(name: str, spec: Prune) -> None:
    model = with_idle(build(name, blocks=4), spec)
    before, wanted = deepcopy(model.state_dict()), says(model)
    small = prune(model, spec, own_words(model))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    assert distance(small, wanted) < 2e-4
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items()), "the original is as it was"


@settings(max_examples=12, deadline=None)
@given(
    groups=st.integers(1, 4), shared=st.integers(1, 3), layers=st.integers(1, 4), units=st.integers(1, 4),
    bias=st.booleans(), shares=st.tuples(*[st.sampled_from([0.3, 0.5, 0.75, 1.0])] * 4),
)  # fmt: skip
def test_of_any_shape_what_is_left_is_a_model_of_the_sizes_that_were_asked_for(
    groups: int, shared: int, layers: int, units: int, bias: bool, shares: tuple[float, ...]
) -> None:
    config = LlamaConfig(
        vocab_size=96, hidden_size=8 * groups * shared * units, intermediate_size=8 * units, head_dim=8,
        num_attention_heads=groups * shared, num_key_value_heads=groups, num_hidden_layers=layers,
        attention_bias=bias, mlp_bias=bias, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model, spec = LlamaForCausalLM(config).eval(), Prune(*shares, multiple=8)
    sizes = sizes_of(model)
    try:
        left = spec.left(sizes)
    except QuantError as refused:
        assert "would leave all" in str(refused)
        return
    for name, share, unit in (
        ("num_hidden_layers", spec.layers, 1), ("intermediate_size", spec.mlp, 8),
        ("hidden_size", spec.hidden, lcm(8, groups * shared)),
    ):  # fmt: skip
        size = getattr(left, name)
        assert abs(size - share * getattr(sizes, name)) <= unit / 2 or size == unit
        assert size % unit == 0
    assert left.hidden_size % left.num_attention_heads == 0
    small = prune(model, spec, tokens())
    assert sizes_of(small) == left and left.shared == sizes.shared
    assert says(small).isfinite().all()


def test_blocks_are_left_out_as_by_really_leaving_them_out() -> None:
    model = build("llama", blocks=5)

    def without(*gone: int) -> float:
        small = deepcopy(model)
        cut_blocks(small, [i for i in range(5) if i not in gone])
        total, count = 0.0, 0
        for batch in tokens():
            logp = small(**batch).logits.log_softmax(-1)
            for row, mask, ids in zip(logp, batch["attention_mask"], batch["input_ids"], strict=True):
                for at in range(int(mask.sum()) - 1):
                    total, count = total - float(row[at, ids[at + 1]]), count + 1
        return total / count

    with torch.no_grad():
        first = min(range(5), key=without)
        second = min((i for i in range(5) if i != first), key=lambda i: without(first, i))
        kept = blocks_to_keep(model, tokens(), 3, lambda *of: None)
        assert kept == [i for i in range(5) if i not in (first, second)]
        assert loss(model, tokens()) == pytest.approx(without(), rel=1e-5)
    assert len(blocks(model)) == 5
    small = prune(model, Prune(layers=0.6), tokens())
    wanted = deepcopy(model)
    cut_blocks(wanted, kept)
    assert torch.equal(says(small), says(wanted))


def test_where_answers_are_marked_blocks_are_judged_by_them_alone(model: nn.Module, batches: list[Batch]) -> None:
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            logp = model(batch["input_ids"], batch["attention_mask"]).logits.log_softmax(-1)[:, :-1]
            said = logp.gather(-1, batch["input_ids"][:, 1:, None])[..., 0][batch["loss_mask"][:, 1:]]
            total, count = total - float(said.sum()), count + len(said)
    assert loss(model, batches) == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("width", [1, 4])
def test_a_unit_counts_what_it_adds_token_by_token(width: int) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(6, 12), torch.randn(50, 12)
    found = contributions(weight, 2 * x.T @ x, width)
    for unit in range(12 // width):
        mine = slice(unit * width, (unit + 1) * width)
        added = sum(float((weight[:, mine] @ token[mine]).square().sum()) for token in x)
        assert float(found[unit]) / 2 == pytest.approx(added, rel=1e-4)


def test_neurons_that_add_most_are_those_that_stay() -> None:
    """Of the first block, whose inputs pruning does not change; rows of gate and up tell which they were."""
    model = build("llama")
    block = model.get_submodule("model.layers.0")
    seen: list[Tensor] = []
    hook = part(block, "mlp.down_proj").register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    added = torch.zeros(96)
    with torch.no_grad():
        for batch in tokens():
            model(**batch)
            for neuron in range(96):
                own = seen[-1][batch["attention_mask"].bool()][:, neuron]
                column = part(block, "mlp.down_proj").weight[:, neuron]
                added[neuron] += sum(float((value * column).square().sum()) for value in own)
    hook.remove()
    kept = added.argsort(descending=True)[:32].sort().values
    small = prune(model, Prune(mlp=1 / 3), tokens())
    for name in ("mlp.gate_proj", "mlp.up_proj"):
        assert torch.equal(part(small.get_submodule("model.layers.0"), name).weight, part(block, name).weight[kept])


def test_channels_count_by_their_part_in_what_each_reader_reads() -> None:
    model = build("llama")
    found = channel_shares(reads_of(model, tokens()))
    assert float(found.sum()) == pytest.approx(2 * 5 + 1, rel=1e-5)
    inputs: list[Tensor] = []
    top: Any = head(model)
    hook = top.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with torch.no_grad():
        for batch in tokens():
            model(**batch)
    hook.remove()
    rows = torch.cat([x[b["attention_mask"].bool()] for x, b in zip(inputs, tokens(), strict=True)])
    read = rows.square().sum(0) * top.weight.square().sum(0)
    last = [read_of for read_of in reads_of(model, tokens()) if top in read_of.readers]
    torch.testing.assert_close(channel_shares(last), read / read.sum(), rtol=1e-4, atol=1e-6)


def test_what_stays_stands_in_for_what_goes_by_least_squares() -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 5) @ torch.randn(5, 12) + 0.1 * torch.randn(400, 12)
    linear, kept = nn.Linear(12, 7, bias=False).requires_grad_(False), torch.tensor([0, 2, 3, 7, 8, 11])
    wanted = linear(x)
    best = torch.linalg.lstsq(x[:, kept], wanted).solution
    alone = float((wanted - x[:, kept] @ linear.weight[:, kept].T).norm())
    absorb(linear, kept, 2 * x.T @ x, 1)
    error = float((wanted - x[:, kept] @ linear.weight[:, kept].T).norm())
    assert error < 1.25 * float((wanted - x[:, kept] @ best).norm()) < 0.3 * alone


@pytest.mark.parametrize("spec", HALVES[1:], ids=str)
def test_it_keeps_more_of_what_the_model_says_than_a_blind_choice_of_the_same_shape(spec: Prune) -> None:
    """On a model whose parts differ: each second one is loud."""
    model = build("llama")
    with torch.no_grad():
        for _, block in blocks(model):
            part(block, "mlp.down_proj").weight[:, ::2] *= 4
            part(block, "self_attn.o_proj").weight[:, : sizes_of(model).group] /= 8
        for norm in norms(model).values():
            norm.weight[::2] *= 4  # type: ignore[index, operator]
    wanted = says(model)
    small = prune(model, spec, tokens())
    blind = prune(model, spec, [{**b, "input_ids": torch.full_like(b["input_ids"], 7)} for b in tokens()])
    assert distance(small, wanted) < distance(blind, wanted)


ALL = Prune(layers=0.5, heads=0.5, mlp=0.67, hidden=0.5)


def test_what_is_left_is_saved_loaded_quantized_and_run_by_llama_cpp(
    original: LlamaForCausalLM, batches: list[Batch], tokenizer_dir: Path, tmp_path: Path
) -> None:
    small = prune(original, ALL, batches)
    small.save_pretrained(tmp_path / "hf")  # type: ignore[operator]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert sizes_of(loaded) == Sizes(1, 1, 2, 16, 64, 32)
    batch = {name: batches[0][name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, small(**batch).logits)
    file = export(loaded, tmp_path / "float.gguf", "gguf", tokenizer_dir)
    check_against_llama_cpp(loaded, batches, file)
    quantize(loaded, GPTQ(bits=4), batches)
    file = export(loaded, tmp_path / "q4.gguf", "gguf", tokenizer_dir)
    check_what_gguf_reads(loaded, file)
    check_against_llama_cpp(loaded, batches, file)


def test_the_random_numbers_of_the_caller_are_left_alone_and_two_runs_agree() -> None:
    model = build("llama")
    torch.manual_seed(3)
    one = prune(model, ALL, tokens())
    drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(3))
    again = prune(model, ALL, tokens())
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_what_cannot_be_pruned_is_named() -> None:
    for name, spec, said in (
        ("phi", ALL, r"layers\.0 has no mlp\.gate_proj; pruning takes decoders of"),
        ("phi3", ALL, r"layers\.0 has no self_attn\.q_proj"),
        ("bert", ALL, r"has no self_attn\.q_proj"),
        ("gemma", Prune(hidden=0.5), "computes otherwise than what was cut"),
        ("gemma3_text", Prune(layers=0.5), "full_attention and sliding_attention, which take turns; give layers=1"),
        ("llama", Prune(heads=0.9), "heads=0.9 would leave all 2: the next number that fits is 1; take a smaller"),
        ("llama", Prune(mlp=0.5, multiple=128), "mlp=0.5 would leave all 96: no smaller number fits"),
    ):
        with pytest.raises(QuantError, match=said):
            prune(build(name), spec, tokens())
    with pytest.raises(QuantError, match="already quantized"):
        prune(quantize(build("llama"), RTN()), ALL, tokens())
    with pytest.raises(QuantError, match="got 0"):
        prune(build("llama"), ALL, [])
    model: Any = build("llama")
    model.config.intermediate_size = 128
    with pytest.raises(QuantError, match=r"config\.intermediate_size is 128, and model\.layers\.0 has 96"):
        prune(model, ALL, tokens())
    model.model.layers[1].mlp.router = nn.Linear(64, 4)
    with pytest.raises(QuantError, match=r"layers\.1 also has mlp\.router"):
        prune(model, ALL, tokens())
    for wrong, said in (({"mlp": 0.0}, "mlp is a share"), ({"layers": 1.5}, "got 1.5"), ({"multiple": 0}, "got 0")):
        with pytest.raises(QuantError, match=said):
            Prune(**wrong)  # type: ignore[arg-type]


def test_a_tie_of_head_and_embedding_is_kept() -> None:
    model = build("qwen2")
    cut_channels(model, torch.arange(0, 64, 2))
    assert tied(model) and embedding(model).weight.shape == (96, 32)
    assert tied(prune(build("qwen2"), Prune(hidden=0.5), tokens()))
