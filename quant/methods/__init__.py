"""The methods: one file a method, one line a choice. Specs only; importing them loads no torch."""

from quant.methods.gptq import GPTQ as GPTQ
from quant.methods.qat import QAT as QAT
from quant.methods.rtn import RTN as RTN

Method = RTN | GPTQ | QAT
