"""Gradient checkpointing of single layers."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def run(layer: nn.Module, *inputs):
    """A layer's output. Where the layer has `recompute`, the backward pass runs it again (gradient checkpointing).

    What its inside would keep for the backward pass is then never in memory for more than one layer at a time.
    """
    if getattr(layer, "recompute", False) and torch.is_grad_enabled():
        return checkpoint(layer, *inputs, use_reentrant=False)
    return layer(*inputs)
