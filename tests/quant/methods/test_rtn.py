"""RTN: the nearest level, everywhere, without data."""

import torch
from torch import nn

from quant import quantize
from quant.anatomy import all_linears
from quant.methods import RTN


def test_every_weight_takes_its_nearest_level(model: nn.Module) -> None:
    before = {name: linear.weight.detach().clone() for name, linear in all_linears(model)}
    method = RTN(bits=4)
    quantize(model, method)
    for name, weight in before.items():
        layer, grid = model.get_submodule(name), method.number_grid()
        scales = grid.find(weight)
        assert torch.equal(layer.codes(), grid.quantize(weight, scales))
