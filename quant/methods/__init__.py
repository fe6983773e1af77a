"""The methods: one file a method, one line a choice. Specs only; importing them loads no torch."""

from quant.methods.autoround import AutoRound as AutoRound
from quant.methods.awq import AWQ as AWQ
from quant.methods.best import Best as Best
from quant.methods.fp8 import FP8 as FP8
from quant.methods.gptq import GPTQ as GPTQ
from quant.methods.mixed import Mixed as Mixed
from quant.methods.qat import QAT as QAT
from quant.methods.rtn import RTN as RTN
from quant.methods.smoothquant import SmoothQuant as SmoothQuant
from quant.methods.sparsegpt import SparseGPT as SparseGPT
from quant.methods.wanda import Wanda as Wanda

Method = RTN | GPTQ | AWQ | AutoRound | QAT | Best | Mixed | SmoothQuant | FP8 | Wanda | SparseGPT
