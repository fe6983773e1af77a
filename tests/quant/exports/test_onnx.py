"""The folder, run by ONNX Runtime: the same outputs as our own model, from the same integers."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM
from transformers.utils import ModelOutput

from quant import QuantError, quantize
from quant.activations import Activations
from quant.anatomy import all_linears, quantize_embedding
from quant.exports import onnx as exported
from quant.exports.onnx import MODEL, Session, read, write
from quant.grid import FloatGrid, Grid, IntGrid
from quant.linear import QuantLinear, QuantWeight
from quant.methods import RTN

BATCHES = [(1, 1), (2, 5), (3, 17)]
TOKEN, TENSOR = (Activations("int8", per, dynamic=True) for per in ("token", "tensor"))  # type: ignore[arg-type]
STATIC = Activations("int8", "tensor", dynamic=False)


@dataclass
class Case:
    model: nn.Module
    folder: Path
    exact: Session
    fast: Session


def llama(config: LlamaConfig, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**config.to_dict(), "num_hidden_layers": 1, **changes})).eval()


class Toy(nn.Module):
    """A model in the Hugging Face shape that is exported in a second: a block without attention, a head or none."""

    def __init__(self, tied: bool | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = LlamaConfig(vocab_size=300, tie_word_embeddings=bool(tied))
        self.embedding = nn.Embedding(300, 256)
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(256, 256), nn.Tanh())])
        self.head = None if tied is None else nn.Linear(256, 300, bias=False)
        if self.head is not None and tied:
            self.head.weight = self.embedding.weight

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> nn.Module | None:
        return self.head

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> ModelOutput:
        hidden = self.layers[0](self.embedding(input_ids)) * attention_mask.unsqueeze(-1)
        return ModelOutput(last_hidden_state=hidden) if self.head is None else ModelOutput(logits=self.head(hidden))


def bert() -> nn.Module:
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=64, initializer_range=0.15, num_labels=3,
    )).eval()  # fmt: skip
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return model


def put(model: nn.Module, grids: list[tuple[Grid, Activations | None]]) -> nn.Module:
    """Each linear of the blocks on the grid of its turn, and with its rounding of inputs."""
    for (name, linear), (grid, rounding) in zip(all_linears(model), grids, strict=True):
        scale = torch.tensor([0.05]) if rounding is STATIC else None
        model.set_submodule(name, QuantLinear.round(linear, grid, True, rounding, scale))
    return model


def every_grid(config: LlamaConfig) -> nn.Module:
    """Rows are of 64 weights, the last one's of 96: blocks of 128, and groups of 64, end in the middle."""
    grids = [
        IntGrid(4), IntGrid(4, symmetric=False), IntGrid(2, group_size=16), IntGrid(8, group_size=None),
        IntGrid(8), IntGrid(8, symmetric=False), IntGrid(2, symmetric=False, group_size=64),
    ]  # fmt: skip
    model = put(llama(config), [(grid, None) for grid in grids])
    quantize_embedding(model, IntGrid(8))
    return model


def rounding_inputs(_: LlamaConfig) -> nn.Module:
    per_row = IntGrid(8, group_size=None)
    model = put(bert(), [
        (per_row, TOKEN), (per_row, STATIC), (IntGrid(4), TENSOR), (IntGrid(8), STATIC), (per_row, TENSOR),
        (IntGrid(8, group_size=64), None),
    ])  # fmt: skip
    quantize_embedding(model, IntGrid(4, symmetric=False))
    return model


MODELS = {
    "decoder, every grid": every_grid,
    "classifier, rounds its inputs": rounding_inputs,
    "tied, 4 bits": lambda _: quantize(Toy(tied=True), RTN(bits=8, group_size=None, embedding_bits=4)),
    "K-quants, a head of its own": lambda _: quantize(
        Toy(tied=False), RTN(bits=4, grid="k", head_bits=4, embedding_bits=2)
    ),
    "no head, floats": lambda _: Toy(tied=None),
}


@pytest.fixture(scope="module", params=MODELS)
def case(
    request: pytest.FixtureRequest, config: LlamaConfig, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Case:
    model = MODELS[request.param](config)
    folder = write(model, tmp_path_factory.mktemp("onnx") / "model", tokenizer_dir)
    return Case(model, folder, Session(folder, 1, exact=True), Session(folder, 1))


def batch_of(model: nn.Module, rows: int, tokens: int) -> dict[str, Tensor]:
    """Random ids; the second row, where there is one, is half padding."""
    torch.manual_seed(rows)
    ids = torch.randint(0, model.config.vocab_size, (rows, tokens))
    mask = torch.ones_like(ids)
    mask[1:2, tokens // 2 + 1 :] = 0
    segments = {"token_type_ids": torch.randint(0, 2, ids.shape)} if "Bert" in type(model).__name__ else {}
    return {"input_ids": ids, "attention_mask": mask, **segments}


@torch.no_grad()
def expected(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch)[0]


@pytest.mark.parametrize(("rows", "tokens"), BATCHES)
def test_onnx_runtime_computes_the_same(case: Case, rows: int, tokens: int) -> None:
    batch = batch_of(case.model, rows, tokens)
    ours = expected(case.model, batch)
    attended = slice(None) if ours.ndim == 2 else batch["attention_mask"].bool()
    # Where inputs are rounded, the last bit of one of many now and then decides for another level.
    rounds = any(isinstance(m, QuantLinear) and m.activations for m in case.model.modules())
    for session, bound in ((case.exact, 5e-3 if rounds and tokens > 1 else 1e-5), (case.fast, 0.05)):
        assert (session(batch) - ours)[attended].abs().max() < bound * ours.abs().max()


def test_what_is_read_back_is_what_the_layers_hold(case: Case) -> None:
    state = read(case.folder)
    for name, module in case.model.named_modules():
        if isinstance(module, QuantWeight) and ("head" not in name or case.model.config.tie_word_embeddings is False):
            held = module.dequantize()
            tolerance = 0.0 if module.grid.symmetric else 1e-6  # the minimum has taken up half of the levels
            torch.testing.assert_close(state[f"{name}.weight"], held, rtol=tolerance, atol=tolerance)
            assert getattr(module, "bias", None) is None or torch.equal(state[f"{name}.bias"], module.bias)


def test_integers_are_stored_once_and_nothing_of_this_machine(case: Case) -> None:
    data = (case.folder / MODEL).read_bytes()
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model)
    integers = (onnx.TensorProto.UINT8, onnx.TensorProto.INT8)
    tables = [i for i in model.graph.initializer if case.model.config.vocab_size in i.dims and i.data_type in integers]
    whole = [m for m in case.model.modules() if isinstance(m, QuantWeight) and m.rows == case.model.config.vocab_size]
    assert len(tables) == len({m.packed.data_ptr() for m in whole})
    assert b"site-packages" not in data and str(Path.cwd()).encode() not in data


def test_the_folder_has_what_a_tokenizer_needs(case: Case, tokenizer_dir: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(case.folder)
    assert tokenizer("where is my order") == AutoTokenizer.from_pretrained(tokenizer_dir)("where is my order")
    assert AutoConfig.from_pretrained(case.folder).vocab_size == case.model.config.vocab_size


@pytest.mark.parametrize(("grid", "rounding", "message"), [
    (IntGrid(3), None, r"q_proj: onnx holds integers of 2, 4 or 8 bits, not IntGrid\(bits=3"),
    (FloatGrid("nf4", 32, "fp16"), None, r"q_proj: onnx holds integers .* not FloatGrid\(format='nf4'.* or export"),
    (IntGrid(4, group_size=24), None, r"q_proj: onnx holds groups of 16, 32, 64, 128, 256 weights, not 24; quantize"),
    (IntGrid(8), Activations("e4m3", "token", dynamic=True), r"q_proj: onnx holds inputs rounded to int8, not e4m3"),
], ids=str)  # fmt: skip
def test_a_grid_that_no_operator_takes_is_refused(
    grid: Grid, rounding: Activations | None, message: str, config: LlamaConfig, tokenizer_dir: Path, tmp_path: Path
) -> None:
    model = put(llama(config), [(grid, rounding)] * 7)
    with pytest.raises(QuantError, match=message):
        write(model, tmp_path / "model", tokenizer_dir)
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_fails_leaves_nothing(
    model: nn.Module, tokenizer_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(QuantError, match=r"no tokenizer\.json"):
        write(model, tmp_path / "model", tmp_path)
    monkeypatch.setattr(exported, "LARGEST", 1000)
    with pytest.raises(QuantError, match=r"LlamaForCausalLM is 0\.0 GB, and an onnx file holds 2; export"):
        write(model, tmp_path / "model", tokenizer_dir)
    monkeypatch.undo()
    monkeypatch.setattr(type(model), "forward", lambda self, **_: torch.linalg.eig(torch.eye(2)))
    with pytest.raises(QuantError, match=r"^LlamaForCausalLM: torch cannot trace it \(.*\); export"):
        write(model, tmp_path / "model", tokenizer_dir)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "taken").touch()
    with pytest.raises(QuantError, match="is a file"):
        write(model, tmp_path / "taken", tokenizer_dir)


def test_a_missing_package_is_named(
    model: nn.Module, tokenizer_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(QuantError, match=r"need the package 'onnxscript'; pip install 'flywheel\[onnx\]'"):
        write(model, tmp_path / "model", tokenizer_dir)


def test_a_damaged_file_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(QuantError, match=r"there is no .*model\.onnx"):
        Session(tmp_path)
    (tmp_path / MODEL).write_bytes(b"GGUF not this")
    with pytest.raises(QuantError, match=r"model\.onnx is damaged"):
        read(tmp_path)
