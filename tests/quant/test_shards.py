"""Folders quantized block by block, against the whole model loaded, quantized and exported."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from quant import QuantError, export, quantize
from quant.calibrate import Batch
from quant.methods import GPTQ, QAT, RTN
from quant.methods.sparsegpt import SparseGPT
from quant.methods.wanda import Wanda
from quant.shards import quantize_folder
from tests.quant.conftest import *
