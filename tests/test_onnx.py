"""Networks as ONNX files: what onnxruntime computes is what PyTorch does, and the programs take them as checkpoints."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from conftest import CORPUS, ROOT, SPEECH, TINY, VARIANTS, greedy_texts, tiny_network
from test_streaming import causal_network
from torch.nn.utils.rnn import pad_sequence

import evaluate
import inference
from models import LAS, OnnxLAS, Recognizer, Transcriber
from models.export import __main__ as export_module
from models.export.las import export_las
from models.export.onnx import export_onnx, quantize
from models.inference.onnx import read_onnx
from utils.audio import load_audio
from utils.decoding.options import DecodingOptions
from utils.types import Batch

pytest.importorskip("onnxscript", reason="requirements-export.txt is not installed")

CTC = [name for name, (model, _) in VARIANTS.items() if model != "las"]
WITH_ATTENTION = [name for name in VARIANTS if name not in CTC]
# an export takes seconds; `pytest -m long` runs all
EVERYDAY = ("lookahead", "lstm", "conformer-local-ctc", "las", "las-location")


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
            if isinstance(network, LAS):
                for weight in network.speller.parameters():
                    weight.data *= 2  # so that its texts are more than one letter again and again
            (export_las if isinstance(network, LAS) else export_onnx)(network, path)
            made[variant] = network, path
        return made[variant]

    return export


def write_checkpoint(network: Recognizer, path: Path) -> None:
    """Writes a network as a checkpoint."""
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"recognizer": network.config, "state_dict": state}, path)


def variants(names: list[str]) -> list:
    """Parameters of a test: those that are not for every day are long."""
    return [name if name in EVERYDAY else pytest.param(name, marks=pytest.mark.long) for name in names]


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


@pytest.mark.parametrize("variant", variants(CTC))
def test_onnxruntime_computes_what_pytorch_does(exported, variant):
    """In a batch and alone: the same log-probabilities, and an utterance's own whatever it is padded to."""
    network, path = exported(variant)
    other, waveforms = read_onnx(path), speech()
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


def test_a_file_that_computes_something_else_is_said(tmp_path, capsys):
    network = tiny_network("mingru")
    torch.nn.init.constant_(network.head[-1].bias, torch.nan)
    write_checkpoint(network, tmp_path / "x.ckpt")
    with pytest.raises(SystemExit, match="2"):
        export_module.main([str(tmp_path / "x.ckpt"), str(tmp_path / "x.onnx")])
    assert "x.onnx does not compute what this network computes" in capsys.readouterr().err


def test_the_command_line(exported, tmp_path, capsys):
    """A checkpoint becomes a file, with which the programs transcribe and evaluate."""
    network, path = exported("lookahead")
    write_checkpoint(network, tmp_path / "x.ckpt")
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
    other = read_onnx(path)
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
    expected, found = (outputs(one, speech()) for one in (network, read_onnx(tmp_path / "x.onnx")))
    assert 0 < float((expected[0] - found[0])[1].abs().max()) < 0.05


@pytest.mark.parametrize("options", [
    {"rnn_type": "mingru", "lookahead": 3, "rnn_conv": 5, "rnn_residual": True, "rnn_layers": 3,
     "rnn_feedforward": 24},
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
    text, = greedy_texts(network, [torch.from_numpy(samples.astype("f4") / 32_768)])
    assert capsys.readouterr().out.split() == text.split() != []


@torch.inference_mode()
@pytest.mark.parametrize("variant", variants(WITH_ATTENTION))
def test_las_is_a_listener_and_a_speller(exported, variant):
    """Log-probabilities of a text, in a padded batch and alone; texts and times of words by greedy and beam search."""
    network, path = exported(variant)
    other, waveforms, tokens = read_onnx(path), speech(), torch.randint(1, network.tokenizer.ctc_size, (3, 7))

    def padded(waveforms: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return pad_sequence(waveforms, batch_first=True), torch.tensor([len(waveform) for waveform in waveforms])

    def predicted(network: Recognizer, some: slice) -> torch.Tensor:
        return network(Batch(*padded(waveforms[some]), tokens[some], torch.tensor([7, 7, 7][some]), [], [], []))[0]

    found = predicted(other, slice(3))
    torch.testing.assert_close(found, predicted(network, slice(3)), atol=1e-4, rtol=0)
    torch.testing.assert_close(found[:1], predicted(other, slice(1)), atol=1e-4, rtol=0)
    recordings = [load_audio(path) for path in SPEECH[:5]]
    assert isinstance(other, OnnxLAS)
    assert other.decode(other.encode(*padded(recordings))) == network.decode(network.encode(*padded(recordings)))
    for decoding in (DecodingOptions(), DecodingOptions(decoder="beam", beam_size=3, ctc_score_weight=0.3, nbest=2)):
        for recording in recordings[:2]:
            expected, found = (Transcriber(one, decoding).transcribe(recording) for one in (network, other))
            assert decoding.decoder == "greedy" or len(found.text) > 5
            assert [one.text for one in found.candidates] == [one.text for one in expected.candidates]
            assert [word[:3] for word in found.words] == [word[:3] for word in expected.words]


def test_las_on_the_command_line(exported, tmp_path, capsys):
    """The programs take the pair for the checkpoint, in 8 bits too; half a pair is refused in one line."""
    network, path = exported("las")
    write_checkpoint(network, path.with_name("x.ckpt"))
    texts = []
    for checkpoint in (path.with_name("x.ckpt"), path):
        with pytest.raises(SystemExit):
            inference.main(["--checkpoint", str(checkpoint), "--audio", *map(str, SPEECH[:3])])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and len(texts[0].splitlines()) >= 3
    torch.manual_seed(0)
    options = {**TINY["las"], "attention": "location", "pyramid_layers": 1, "speller_layers": 1}
    write_checkpoint(Recognizer.build("las", **options), tmp_path / "x.ckpt")
    export_module.main([str(tmp_path / "x.ckpt"), str(tmp_path / "x.onnx"), "--int8"])
    assert re.fullmatch(rf"{tmp_path}/x.onnx and {tmp_path}/x.speller.onnx: 0\.\d MB, .* by at most 0\.0\d*\n",
                        capsys.readouterr().out)
    assert b"MatMulInteger" in (tmp_path / "x.speller.onnx").read_bytes()
    for file, make, message in (
            ("x.onnx", lambda speller: speller.write_bytes(path.with_name("x.speller.onnx").read_bytes()),
             "x.speller.onnx next to it was not exported with it"),
            ("x.speller.onnx", lambda speller: None, "a speller: name the file of its listener"),
            ("x.onnx", lambda speller: speller.unlink(), "needs x.speller.onnx next to it")):
        make(tmp_path / "x.speller.onnx")
        with pytest.raises(SystemExit) as leave:
            inference.main(["--checkpoint", str(tmp_path / file), "--audio", str(SPEECH[0])])
        line, = capsys.readouterr().err.splitlines()
        assert leave.value.code == 2 and message in line and str(tmp_path / file) in line


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
    """Networks that need the whole recording, a wrong name, a missing package."""
    for variant in ("las", "conformer", "mingru"):
        write_checkpoint(tiny_network(variant), tmp_path / f"{variant}.ckpt")

    def error(source: str, target: str, *flags: str) -> str:
        with pytest.raises(SystemExit) as leave:
            export_module.main([str(tmp_path / source), str(tmp_path / target), *flags])
        line, = capsys.readouterr().err.splitlines()
        assert leave.value.code == 2 and not (tmp_path / target).exists()
        return line

    for model in ("las", "conformer"):
        assert f"a {model} network needs the whole recording" in error(f"{model}.ckpt", "x.onnx", "--stream")
    assert "train with --no-bidirectional" in error("mingru.ckpt", "x.onnx", "--stream")
    assert "x.pt: must end in .onnx" in error("mingru.ckpt", "x.pt")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "pip install -r requirements-export.txt" in error("mingru.ckpt", "x.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "y.onnx").touch()
    with pytest.raises(ImportError, match="y.onnx: needs onnxruntime: pip install -r requirements-export.txt"):
        read_onnx(tmp_path / "y.onnx")
