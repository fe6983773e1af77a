"""An encoder with a head, and how it is kept: the encoder as Hugging Face has it, `head.safetensors` beside it.

The head reads the direction of the mean of the last hidden states, to which sentence encoders were pretrained to give a
meaning.
"""

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from infra.settings import SetupError
from tasks.training.loop import write_tensors

HEAD = "head.safetensors"
LENGTH = 10.0  # of what the head reads, so that weights of about 1 tell labels apart


class Classifying(nn.Module):
    """Logits [b, labels] for ids [b, t], in the shape that `quant` takes: with `config` and `get_input_embeddings`."""

    def __init__(self, encoder: Any, labels: int) -> None:
        super().__init__()
        if hasattr(encoder, "pooler"):
            encoder.pooler = None  # what was pretrained to read the first token is not read
        self.encoder, self.config = encoder, encoder.config
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(encoder.config.hidden_size, labels)

    def get_input_embeddings(self) -> nn.Module:
        table: nn.Module = self.encoder.get_input_embeddings()
        return table

    def features(self, input_ids: Tensor, attention_mask: Tensor, **segments: Tensor) -> Tensor:
        """What the head reads of each text, float32 [b, hidden]."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **segments).last_hidden_state
        sums: Tensor = (hidden * attention_mask.unsqueeze(-1).to(hidden.dtype)).sum(1)
        return LENGTH * functional.normalize(sums, dim=-1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **segments: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.dropout(self.features(input_ids, attention_mask, **segments)))}


def load_encoder(path: str) -> Any:
    """The encoder at a Hugging Face id or path, in float32.

    Raises:
        SetupError: There is none.
    """
    from transformers import AutoModel

    try:
        encoder = AutoModel.from_pretrained(path, dtype="float32")
    except Exception as problem:  # transformers raises a dozen kinds for "this is no model"
        first = str(problem).strip().splitlines()[0][:200] if str(problem).strip() else type(problem).__name__
        raise SetupError(
            f"encoder {path!r} is not a Hugging Face model ({first}); "
            "give a folder with config.json and safetensors, or a hub id, in FLYWHEEL_ENCODER"
        ) from problem
    return encoder


def write(model: Classifying, folder: Path) -> None:
    """Put a classifier into a folder that has its tokenizer."""
    model.encoder.save_pretrained(folder)
    write_tensors(dict(model.head.named_parameters()), folder / HEAD)


def read(folder: Path) -> Classifying:
    """What `write` wrote, ready to answer."""
    from safetensors.torch import load_file

    tensors = load_file(folder / HEAD)
    model = Classifying(load_encoder(str(folder)), len(tensors["bias"]))
    model.head.load_state_dict(tensors)
    return model.eval()
