"""Text while somebody is still speaking."""

import torch
from torch import Tensor

from models.components.streaming import StreamingError
from models.recognizer import Recognizer


class StreamingRecognizer:
    """Greedy CTC decoding of one stream: `feed` and `finish` return pieces of text that, joined, are the whole.

    It needs a network with a `streaming_encoder`. Raises StreamingError, with the flags of `train.py` that give one.
    """

    def __init__(self, network: Recognizer):
        if not hasattr(network, "streaming_encoder"):
            able = [name for name, cls in Recognizer.registry.items() if hasattr(cls, "streaming_encoder")]
            raise StreamingError(f"a {network.name} network needs the whole recording; "
                                 f"train --model {' or '.join(able)}")
        self.network = network.eval()
        self.encoder = network.streaming_encoder()
        self.last, self.text = network.tokenizer.blank, ""
        self.seconds = 0.0  # of sound that the text so far covers

    @torch.inference_mode()
    def feed(self, samples: Tensor) -> str:
        """Returns the text that (S,) more samples at 16 kHz complete."""
        return self._decode(self.encoder.feed(samples))

    @torch.inference_mode()
    def finish(self) -> str:
        """Returns the rest of the text; nothing can be fed afterwards."""
        return self._decode(self.encoder.finish())

    def _decode(self, log_probs: Tensor | None) -> str:
        """Returns the text of (1, T, V) log-probabilities, which goes on from the frame before; single spaces."""
        if log_probs is None:
            return ""
        self.seconds += log_probs.shape[1] * self.network.ctc_frame_seconds
        tokenizer, before = self.network.tokenizer, len(self.text)
        for token in log_probs[0].argmax(dim=-1).tolist():
            if token not in (self.last, tokenizer.blank):
                piece = tokenizer.decode([token])
                self.text += piece if self.text and not self.text.endswith(" ") else piece.removeprefix(" ")
            self.last = token
        return self.text[before:]
