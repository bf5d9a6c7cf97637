"""Gradient checkpointing and compilation, layer by layer."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class EncoderLayer(nn.Module):
    """A large layer of an encoder: the unit of gradient checkpointing and of `torch.compile`."""

    recompute = False

    def recompute_in_backward(self) -> None:
        """Drops the activations after the forward pass and computes them again in the backward pass.

        Memory then holds the activations of one layer at a time. Raises ValueError where that changes the training.
        """
        self.recompute = True

    def __call__(self, *inputs):
        """Returns the layer's output, to be recomputed where that was asked for."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(super().__call__, *inputs, use_reentrant=False)
        return super().__call__(*inputs)


def prepare_layers(network: nn.Module, *, recompute: bool = False, compiled: bool = False) -> None:
    """Has every `EncoderLayer` of a network recomputed in the backward pass, compiled, or both. Raises ValueError."""
    for layer in [module for module in network.modules() if isinstance(module, EncoderLayer)]:
        if recompute:
            layer.recompute_in_backward()
        if compiled:
            layer.compile(dynamic=True)  # for any length, without compiling again for each
