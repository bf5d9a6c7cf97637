"""The web page: what it answers, what it refuses, twenty visitors at once, and a visit with a real browser."""

import base64
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT, SPEECH, greedy_texts, tiny_network
from test_streaming import causal_network
from test_transfer import save

from models import Transcriber
from models.inference.web import __main__ as program
from models.inference.web import systems as offered
from models.inference.web.live import Streams
from models.inference.web.markup import answer_html, comparison_html
from models.inference.web.systems import Answer, Limits
from utils.audio import AudioError, load_audio
from utils.errors import UsageError
from utils.report.writers import WRITERS
from utils.types import Candidate, Transcript, Word

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BROWSER_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
                 "--disable-component-update", "--disable-sync", "--use-fake-ui-for-media-stream",
                 "--use-fake-device-for-media-stream"]
VISITORS = 20


def missing(*packages: str) -> str:
    """Names the packages that are not installed."""
    return ", ".join(name for name in packages if importlib.util.find_spec(name) is None)


needs_gradio = pytest.mark.skipif(bool(missing("gradio")), reason="gradio is not installed: requirements-web.txt")


def answer(*words: Word, text: str | None = None, system: str = "x, greedy") -> Answer:
    text = " ".join(word.word for word in words) if text is None else text
    transcript = Transcript("a.wav", text, 1.0, list(words), [Candidate(text, -1.0)])
    return Answer(system, transcript, torch.zeros(16_000), 0.5)


# -- without Gradio --------------------------------------------------------------------------------


def test_nothing_else_loads_it():
    code = "import sys, train, inference; print([name for name in sys.modules if 'gradio' in name or '.web' in name])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


def test_an_answer_is_whole():
    """Words with their times and confidences, and downloads that hold what inference.py writes; all text is escaped."""
    found = answer(Word("<b>", 0.25, 0.5, 0.9), Word("b", 0.5, 1.0, 0.25), system="<x>, greedy")
    page = answer_html(found, {"posteriors": b"image"})
    assert 'data-start="0.25" data-end="0.5" style="--doubt: 0.10">&lt;b&gt;' in page and "--doubt: 0.75" in page
    assert "<b>" not in page and "<x>" not in page and "data:image/webp;base64,aW1hZ2U=" in page
    for name, writer in WRITERS.items():
        link, = re.findall(rf'download="a\.{name}" href="data:text/plain;base64,([^"]+)"', page)
        assert base64.b64decode(link).decode() == f"{writer.header}{writer.format(found.transcript)}\n"
    assert "no words were recognised" in answer_html(answer(), {})


def test_words_that_differ_are_marked():
    page = comparison_html(answer(text="a b <c>"), answer(text="a x <c> d"))
    assert re.findall("<mark>(.*?)</mark>", page) == ["b", "x", "d"] and "differ in 2 of 4 words" in page
    assert "no words" in comparison_html(answer(text="a"), answer(text=""))


@pytest.mark.parametrize("variant", ["mingru", "las"])
def test_a_recording_is_transcribed_and_drawn(variant, tmp_path):
    path = save(tiny_network(variant), tmp_path / "best.ckpt")
    networks = offered.load_networks([str(path)], torch.device("cpu"))
    systems = offered.build_systems(networks)
    name = f"{tmp_path.name}/best"
    assert list(systems) == [f"{name}, greedy", f"{name}, beam search"]
    found, = offered.recognize(systems, [f"{name}, greedy"], str(SPEECH[0]), Limits())
    expected = Transcriber(path).transcribe(load_audio(SPEECH[0]))
    assert found.transcript == expected._replace(audio=SPEECH[0].name)
    images = offered.draw(systems[f"{name}, greedy"].network, found)
    assert images.keys() == ({"posteriors"} if variant == "mingru" else {"attention", "posteriors"})
    assert all(image[8:12] == b"WEBP" for image in images.values())


def test_recordings_that_are_refused(tmp_path):
    """Without the folder of the file, and no more of a long one is read than the limit."""
    (tmp_path / "text.wav").write_text("hello")
    soundfile.write(tmp_path / "long.flac", np.zeros(16_000 * 40), 16_000)
    assert len(offered.read_recording(str(tmp_path / "long.flac"), 40)) == 640_000
    for name, message in (("text.wav", "text.wav: not audio"), ("long.flac", "long.flac: longer than the 39 s")):
        with pytest.raises(AudioError, match=f"^{message}"):
            offered.read_recording(str(tmp_path / name), 39)
    with pytest.raises(UsageError, match="no recording yet"):
        offered.recognize({}, [], None, Limits())


def test_checkpoints_of_one_name_are_refused(tmp_path):
    path = str(save(tiny_network("gru"), tmp_path / "best.ckpt"))
    with pytest.raises(UsageError, match="another one is called"):
        offered.load_networks([path, path], torch.device("cpu"))
    assert offered.beam_options(path).decoder == "beam" and offered.beam_options(path).lm is None


def test_what_is_missing_is_said(tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit, match="2"):
        program.main(["--checkpoint", str(tmp_path / "x.ckpt")])
    assert "x.ckpt: no such checkpoint file" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gradio", None)
    sys.modules.pop("models.inference.web.page", None)
    with pytest.raises(SystemExit, match="2"):
        program.main(["--checkpoint", str(save(tiny_network("gru"), tmp_path / "best.ckpt"))])
    assert "gradio is not installed: pip install -r requirements-web.txt\n" in capsys.readouterr().err


# -- live text -------------------------------------------------------------------------------------


def encoded(samples: np.ndarray) -> str:
    return base64.b64encode(samples.astype("<i2").tobytes()).decode()


def test_a_stream_gives_the_text_of_the_whole():
    network, samples = causal_network(rnn_type="mingru"), (load_audio(SPEECH[0]).numpy() * 32_000).astype("<i2")
    streams = Streams(network, Limits())
    for i in range(0, len(samples), 1_777):
        live = streams.feed("a", 16_000, encoded(samples[i : i + 1_777]), False)
    streams.feed("a", 16_000, "", True)
    expected, = greedy_texts(network, [torch.from_numpy(samples / np.float32(32_768))])
    assert live.text.strip() == expected and len(expected) > 5
    assert not streams.open and 0 <= live.delay < 60


def test_streams_are_limited(monkeypatch):
    """In number, which counts no stream that was given up, and in length."""
    streams = Streams(causal_network(rnn_type="mingru"), Limits(max_streams=2, stream_seconds=1.0))
    second = encoded(np.zeros(16_000))
    for name in ("a", "b"):
        streams.feed(name, 16_000, second, False)
    with pytest.raises(UsageError, match="2 visitors are speaking already"):
        streams.feed("c", 16_000, second, False)
    streams.feed("a", 16_000, second, False)
    assert streams.open.keys() == {"b"}, "a was too long"
    streams.feed("c", 16_000, second, False)
    now = time.monotonic()
    monkeypatch.setattr("models.inference.web.live.monotonic", lambda: now + 30)
    streams.feed("d", 48_000, second, False)
    assert streams.open.keys() == {"d"}


@pytest.mark.parametrize(("arguments", "message"), [
    (("x" * 65, 16_000, ""), "not a stream"), ((None, 16_000, ""), "not a stream"), (("x", 1, ""), "not a stream"),
    (("x", 16_000.0, ""), "not a stream"), (("x", 16_000, "?"), "not a chunk"), (("x", 16_000, "QQ=="), "not a chunk"),
    (("x", 16_000, None), "not a chunk"), (("x", 16_000, "A" * (5 << 20)), "not a chunk")])
def test_chunks_that_are_refused(arguments, message):
    streams = Streams(causal_network(rnn_type="mingru"), Limits())
    with pytest.raises(UsageError, match=message):
        streams.feed(*arguments, False)
    assert not streams.open


def test_the_first_network_that_can_stream_is_found():
    causal = causal_network(rnn_type="mingru")
    assert offered.find_streaming({"x": ("", tiny_network("las")), "y": ("", causal)}) == (causal, "y")
    network, reason = offered.find_streaming({"x": ("", tiny_network("las"))})
    assert network is None and reason.startswith("x: a las network needs the whole recording")


# -- served ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator["Page"]:
    """A page with a bidirectional and a streaming network, served from a process of its own."""
    folder = tmp_path_factory.mktemp("page")
    paths = [save(network, folder / f"{name}.ckpt") for name, network in (
        ("whole", tiny_network("mingru")), ("stream", causal_network(rnn_type="mingru")))]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "models.inference.web", "--checkpoint", *map(str, paths), "--threads", "1",
               "--port", str(port), "--max_seconds", "10", "--max_megabytes", "1"]
    environment = {**os.environ, "TMPDIR": str(folder)}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment) as process:
        line = process.stdout.readline()
        assert line == f"{folder.name}/whole, {folder.name}/stream: http://127.0.0.1:{port}/\n"
        yield Page(line.split()[-1], process.pid, folder)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert not list(folder.glob("uploads-*")), "uploads outlive the page"


class Page:
    """A client over plain HTTP."""

    def __init__(self, address: str, process: int, folder: Path):
        import httpx

        self.address, self.process, self.folder, self.system = address, process, folder, f"{folder.name}/whole, greedy"
        self.http = httpx.Client(base_url=address, timeout=200)

    def upload(self, path: Path):
        with path.open("rb") as file:
            return self.http.post("gradio_api/upload", files={"files": (path.name, file)})

    def transcribe(self, path: str | None, system: str) -> str:
        """The last event of the answer and its data."""
        data = [path and {"path": path, "meta": {"_type": "gradio.FileData"}}, system]
        event = self.http.post("gradio_api/call/transcribe", json={"data": data}).json()["event_id"]
        return self.http.get(f"gradio_api/call/transcribe/{event}").text

    def memory(self) -> int:
        """Megabytes that the server took at most so far."""
        status = Path(f"/proc/{self.process}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) >> 10


def words_of(page: str) -> str:
    return " ".join(re.findall(r"<button[^>]*>([^<]*)<", page))


@needs_gradio
def test_twenty_visitors_at_once(site):
    """All are answered alike, and memory stays where one visitor left it."""
    expected = Transcriber(site.folder / "whole.ckpt").transcribe(SPEECH[0]).text

    def visit(_) -> str:
        path, = site.upload(SPEECH[0]).json()
        return site.transcribe(path, site.system)

    visit(0)
    before, begin = site.memory(), time.perf_counter()
    with ThreadPoolExecutor(VISITORS) as pool:
        answers = list(pool.map(visit, range(VISITORS)))
    print(f"{VISITORS} visitors: {time.perf_counter() - begin:.1f} s, {before} to {site.memory()} MB")
    for one in answers:
        assert one.startswith("event: complete") or "\nevent: complete" in one
        assert words_of(json.loads(one.split("data: ")[-1])[0]) == expected
    assert site.memory() < before + 100


@needs_gradio
def test_what_strangers_may_not(site, tmp_path):
    """Read a file of the server, let it fetch one, ask for another system, send too much, or learn a path."""
    secret = tmp_path / "secret.wav"
    soundfile.write(secret, np.zeros(16_000), 16_000)
    for url in (f"{site.address}config", "https://example.org/a.wav"):
        assert "upload the file itself, not its address" in site.transcribe(url, site.system)
    for path in (str(secret), "/etc/passwd", f"file://{secret}"):
        assert '{"error": null}' in site.transcribe(path, site.system)
        assert site.http.get(f"gradio_api/file={path}").status_code == 403
    assert "not in the list of choices" in site.transcribe(None, str(site.folder / "stream.ckpt"))
    soundfile.write(tmp_path / "large.wav", np.zeros(600_000), 16_000)
    assert site.upload(tmp_path / "large.wav").status_code == 413
    soundfile.write(tmp_path / "long.flac", np.zeros(16_000 * 11), 16_000)
    path, = site.upload(tmp_path / "long.flac").json()
    assert 'class=\\"error\\">long.flac: longer than the 10 s' in site.transcribe(path, site.system)
    shown = site.http.get("config").text + site.http.get("").text
    assert str(site.folder.parent) not in shown and str(ROOT) not in shown
    assert "default-src 'self'" in site.http.get("").headers["content-security-policy"]


@needs_gradio
@pytest.mark.skipif(not CHROMIUM, reason="no chromium on PATH")
@pytest.mark.skipif(bool(missing("playwright")), reason="playwright is not installed: pip install playwright")
def test_a_visit_with_a_browser(site, tmp_path):
    """Upload, words, download, recording, live text and comparison; the browser asks no other server for anything."""
    from playwright.sync_api import sync_playwright

    samples, rate = soundfile.read(SPEECH[0])
    soundfile.write(tmp_path / "microphone.wav", np.tile(samples, 3), rate)
    flags = [*BROWSER_FLAGS, f"--use-file-for-fake-audio-capture={tmp_path / 'microphone.wav'}"]
    with sync_playwright() as playwright, playwright.chromium.launch_persistent_context(
            str(tmp_path / "profile"), executable_path=CHROMIUM, args=flags, permissions=["microphone"]) as browser:
        page, hosts, errors = browser.new_page(), set(), []
        page.set_default_timeout(60_000)
        page.on("request", lambda request: hosts.add(re.match(r"\w+:(//[^/]*)?", request.url)[0]))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(site.address)
        visit_recording(page, tmp_path)
        visit_live(page)
        visit_comparison(page)
    assert hosts <= {site.address.removesuffix("/"), "data:", "blob:"} and not errors


def visit_recording(page, folder: Path) -> None:
    page.get_by_role("button", name="Transcribe").click()
    page.get_by_text("there is no recording yet").wait_for()
    page.locator("input[type=file]").first.set_input_files(SPEECH[0])
    page.get_by_text(re.compile("^0:0[1-9]$")).first.wait_for()
    page.get_by_role("button", name="Transcribe").click()
    page.locator(".word").first.click()
    page.wait_for_function("document.querySelector('.answer audio').currentTime > 0")
    for name in ("txt", "srt", "vtt", "json"):
        with page.expect_download() as download:
            page.locator(".downloads a", has_text=name).click()
        download.value.save_as(folder / f"a.{name}")
    assert (folder / "a.vtt").read_text().startswith("WEBVTT\n\n00:00:0")
    said = json.loads((folder / "a.json").read_text())
    assert said["audio"] == SPEECH[0].name and (folder / "a.txt").read_text() == said["text"] + "\n"
    page.get_by_label("Clear").first.click()
    page.get_by_label("Record audio").first.click()
    page.get_by_role("button", name="Record", exact=True).first.click()
    page.wait_for_timeout(2_000)
    page.get_by_role("button", name="Stop").first.click()
    page.get_by_text(re.compile("^0:0[1-9]$")).first.wait_for()
    page.get_by_role("button", name="Transcribe").click()
    page.get_by_text(re.compile("greedy: [1-9].* s of audio")).wait_for()


def visit_live(page) -> None:
    page.get_by_role("tab", name="Live").click()
    page.get_by_role("button", name="Speak").click()
    page.locator("output .words", has_text=re.compile("[a-z]{3}")).wait_for()
    assert "behind it (median)" in page.locator("output").inner_text()
    page.get_by_role("button", name="Stop").last.click()
    page.get_by_role("button", name="Speak").wait_for()


def visit_comparison(page) -> None:
    page.get_by_role("tab", name="Compare").click()
    page.locator("input[type=file]").last.set_input_files(SPEECH[0])
    page.get_by_text(re.compile("^0:0[1-9]$")).last.wait_for()
    page.get_by_role("button", name="Compare").last.click()
    page.get_by_text(re.compile(r"They differ in \d+ of \d+ words")).wait_for()
