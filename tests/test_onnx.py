"""Networks as ONNX files: what onnxruntime computes is what PyTorch does, and the programs take them as checkpoints."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from conftest import CORPUS, ROOT, SPEECH, VARIANTS, tiny_network
from test_streaming import causal_network
from torch.nn.utils.rnn import pad_sequence

import evaluate
import inference
from models import Recognizer, Transcriber
from models.export import __main__ as export_module
from models.export.onnx import export_onnx, quantize
from models.inference.onnx import OnnxRecognizer
from utils.audio import load_audio
from utils.decoding.options import DecodingOptions

pytest.importorskip("onnxscript", reason="requirements-export.txt is not installed")

CTC = [name for name, (model, _) in VARIANTS.items() if model != "las"]
EVERYDAY = ("lookahead", "lstm", "conformer-local-ctc")  # an export takes seconds; `pytest -m long` runs all


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Returns a function that gives a variant's network and its ONNX file, made once."""
    made = {}

    def export(variant: str) -> tuple[Recognizer, Path]:
        if variant not in made:
            network, path = tiny_network(variant).eval(), tmp_path_factory.mktemp(variant) / "x.onnx"
            if network.features.feature_norm == "global":
                waveform = load_audio(SPEECH[0])
                network.features.fit_global_statistics([(waveform[None], torch.tensor([len(waveform)]))])
            export_onnx(network, path)
            made[variant] = network, path
        return made[variant]

    return export


def speech() -> list[torch.Tensor]:
    """Utterances of different lengths, one of them shorter than a window of the features."""
    waveforms = [load_audio(path) for path in SPEECH[:3]]
    return [waveforms[0][:9_001], waveforms[1], waveforms[2][:300]]


@torch.inference_mode()
def outputs(network: Recognizer, waveforms: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Log-probabilities of a batch, their lengths, and those for the times of words."""
    counts = torch.tensor([len(waveform) for waveform in waveforms])
    encoding = network.encode(pad_sequence(waveforms, batch_first=True), counts)
    return *network.ctc_log_probs(encoding), network.alignment_log_probs(encoding)


@pytest.mark.parametrize("variant", [name if name in EVERYDAY else pytest.param(name, marks=pytest.mark.long)
                                     for name in CTC])
def test_onnxruntime_computes_what_pytorch_does(exported, variant):
    """In a batch and alone: the same log-probabilities, and an utterance's own whatever it is padded to."""
    network, path = exported(variant)
    other, waveforms = OnnxRecognizer.from_file(path), speech()
    expected, found = outputs(network, waveforms), outputs(other, waveforms)
    assert torch.equal(expected[1], found[1]) and expected[0].shape == found[0].shape
    for i, (waveform, length) in enumerate(zip(waveforms, expected[1].tolist(), strict=True)):
        alone = outputs(other, [waveform])
        for kind in (0, 2):
            torch.testing.assert_close(found[kind][i, :length], expected[kind][i, :length], atol=1e-4, rtol=0)
            torch.testing.assert_close(alone[kind][0], found[kind][i, :length], atol=1e-4, rtol=0)
    assert other.output_frames(len(waveforms[1])) == expected[1][1]


@pytest.mark.parametrize("decoding", [DecodingOptions(), DecodingOptions(decoder="beam", beam_size=8, nbest=3)],
                         ids=["greedy", "beam"])
def test_transcripts_are_those_of_the_checkpoint(exported, decoding):
    """Of a recording longer than a window: texts, words with times and confidences, n-best."""
    network, path = exported("conformer-local-ctc")
    waveform = torch.cat([load_audio(path) for path in SPEECH] * 2)[: 45 * 16_000]
    expected, found = (Transcriber(one, decoding).transcribe(waveform) for one in (network, path))
    assert (found.text, found.seconds) == (expected.text, expected.seconds) and len(found.text) > 5 and found.words
    for one, other in zip(found.words, expected.words, strict=True):
        assert one[:3] == other[:3] and one.confidence == pytest.approx(other.confidence, abs=1e-3)
    assert [one.text for one in found.candidates] == [one.text for one in expected.candidates]


def test_the_command_line(exported, tmp_path, capsys):
    """A checkpoint becomes a file, with which the programs transcribe and evaluate."""
    network, path = exported("lookahead")
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"recognizer": network.config, "state_dict": state}, tmp_path / "x.ckpt")
    export_module.main([str(tmp_path / "x.ckpt"), str(tmp_path / "x.onnx"), "--int8"])
    assert re.fullmatch(rf"{tmp_path}/x.onnx: 0\.\d MB, opset 18; .* by at most 0\.0\d*\n", capsys.readouterr().out)
    with pytest.raises(SystemExit) as leave:
        inference.main(["--checkpoint", str(tmp_path / "x.onnx"), "--audio", str(SPEECH[0])])
    assert leave.value.code == 0 and capsys.readouterr().out.strip()
    evaluate.main(["--checkpoint", str(tmp_path / "x.ckpt"), str(path), "--test_sets", "dev",
                   "--data_root", str(CORPUS), "--report", str(tmp_path / "report")])
    hypotheses = [path.read_text() for path in sorted((tmp_path / "report").rglob("*hyp*.trn"))]
    assert len(hypotheses) == 2 and hypotheses[0] == hypotheses[1]
    with pytest.raises(SystemExit):
        inference.main(["--checkpoint", str(path), "--stream"])
    assert "x.onnx takes whole recordings" in capsys.readouterr().err
    other = OnnxRecognizer.from_file(path)
    assert other.config == network.config and other.ctc_frame_samples == network.ctc_frame_samples
    assert str(ROOT).encode() not in path.read_bytes(), "a path of this machine"


def test_eight_bits(exported, tmp_path):
    """The network's matrices are integers, the features' are not, and log-probabilities differ little."""
    import onnx

    network, path = exported("conformer-local-ctc")
    (tmp_path / "x.onnx").write_bytes(quantize(path.read_bytes()))
    kinds = [node.op_type for node in onnx.load(tmp_path / "x.onnx").graph.node]
    whole = [node for node in onnx.load(path).graph.node if node.op_type in ("MatMul", "Gemm")]
    assert kinds.count("MatMulInteger") == sum("features" not in node.name for node in whole) - 3 * 2  # attention's own
    expected, found = (outputs(one, speech()) for one in (network, OnnxRecognizer.from_file(tmp_path / "x.onnx")))
    assert 0 < float((expected[0] - found[0])[1].abs().max()) < 0.05


@pytest.mark.parametrize("options", [
    {"rnn_type": "mingru", "lookahead": 3, "rnn_conv": 5, "rnn_residual": True, "rnn_layers": 3},
    pytest.param({"rnn_type": "gru", "lookahead": 0}, marks=pytest.mark.long),
    pytest.param({"rnn_type": "lstm", "rnn_norm": "batch", "time_stride": 4}, marks=pytest.mark.long)], ids=str)
def test_steps_of_a_stream_give_what_the_whole_gives(tmp_path, monkeypatch, capsys, options):
    """Of pieces of any size, and of a recording in one piece: the log-probabilities of the network."""
    network, waveform = causal_network(**options), load_audio(SPEECH[0])
    expected = outputs(network, [waveform])[0][0]
    export_onnx(network, tmp_path / "x.onnx", stream=True)
    other = Recognizer.from_checkpoint(tmp_path / "x.onnx")
    for size in (1_600, 7_777, len(waveform)):
        encoder = other.streaming_encoder()
        parts = [*map(encoder.feed, waveform.split(size)), encoder.finish()]
        found = torch.cat([part[0] for part in parts if part is not None])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(outputs(other, [waveform[:9_001], waveform])[0][1], expected, atol=1e-4, rtol=0)
    samples = (waveform.numpy() * 32_767).astype("<i2")
    (tmp_path / "x.raw").write_bytes(samples.tobytes())
    monkeypatch.setattr("sys.stdin", (tmp_path / "x.raw").open())
    with pytest.raises(SystemExit):
        inference.main(["--checkpoint", str(tmp_path / "x.onnx"), "--stream"])
    assert len(capsys.readouterr().out.strip()) > 5


def foreign(path: Path) -> None:
    """A graph of another project."""
    import onnx
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None]) for name in ("waveforms", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["waveforms"], ["y"])], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def changed(path: Path, source: Path, **metadata: str) -> None:
    """One of ours with other metadata."""
    import onnx

    model = onnx.load(source)
    for entry in model.metadata_props:
        entry.value = metadata.get(entry.key, entry.value)
    onnx.save(model, path)


def test_other_files_are_refused_in_one_line(exported, tmp_path, capsys):
    network, good = exported("lookahead")
    path = tmp_path / "x.onnx"
    other_letters = json.dumps({**network.config, "alphabet": "abc"})
    for make, message in (
            (lambda: path.write_bytes(good.read_bytes()[:5_000]), "onnxruntime cannot run it"),
            (lambda: path.write_bytes(b""), "onnxruntime cannot run it"),
            (lambda: path.write_bytes(bytes(range(256)) * 40), "onnxruntime cannot run it"),
            (lambda: foreign(path), "not a network of this project"),
            (lambda: changed(path, good, format_version="9"), "not a network of this project, or of another version"),
            (lambda: changed(path, good, config="{"), "damaged"),
            (lambda: changed(path, good, config='{"model": "x", "n_mels": [[]]}'), "damaged"),
            (lambda: changed(path, good, config='{"model": "x", "n_mels": -1}'), "damaged: n_mels"),
            (lambda: changed(path, good, config=other_letters), "damaged: its network and its tokenizer differ"),
            (lambda: path.unlink(), "no such checkpoint file")):
        make()
        with pytest.raises(SystemExit) as leave:
            inference.main(["--checkpoint", str(path), "--audio", str(SPEECH[0])])
        lines = capsys.readouterr().err.splitlines()
        assert leave.value.code == 2 and len(lines) == 1 and lines[0].startswith(f"inference.py: error: {path}: ")
        assert message in lines[0], lines[0]


def test_what_cannot_be_exported_is_said(tmp_path, capsys, monkeypatch):
    """An attention network, one that needs the whole recording, a wrong name, a missing package."""
    for variant in ("las", "mingru"):
        network = tiny_network(variant)
        state = {f"network.{name}": value for name, value in network.state_dict().items()}
        torch.save({"recognizer": network.config, "state_dict": state}, tmp_path / f"{variant}.ckpt")

    def error(source: str, target: str, *flags: str) -> str:
        with pytest.raises(SystemExit) as leave:
            export_module.main([str(tmp_path / source), str(tmp_path / target), *flags])
        line, = capsys.readouterr().err.splitlines()
        assert leave.value.code == 2 and not (tmp_path / target).exists()
        return line

    assert "a las network cannot be exported to ONNX" in error("las.ckpt", "x.onnx")
    assert "train with --no-bidirectional" in error("mingru.ckpt", "x.onnx", "--stream")
    assert "x.pt: must end in .onnx" in error("mingru.ckpt", "x.pt")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "pip install -r requirements-export.txt" in error("mingru.ckpt", "x.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "y.onnx").touch()
    with pytest.raises(ImportError, match="y.onnx: needs onnxruntime: pip install -r requirements-export.txt"):
        OnnxRecognizer.from_file(tmp_path / "y.onnx")
