from dataclasses import dataclass
from typing import Literal
from quant.methods.base import IntegerWeights
@dataclass(frozen=True)
class QAT(IntegerWeights):
    name: Literal["qat"] = "qat"
