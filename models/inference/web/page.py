"""The page itself, in Gradio: tabs and what their buttons call."""

from functools import wraps
from pathlib import Path

import gradio as gr
from gradio import processing_utils

from models.inference.transcriber import Transcriber
from models.inference.web.live import Streams
from models.inference.web.markup import answer_html, comparison_html, error_html, live_html
from models.inference.web.systems import Limits, draw, recognize
from models.recognizer import Recognizer
from utils.errors import UserError

FOLDER = Path(__file__).parent
KEPT_SECONDS = 1800  # that an upload stays on disk
NETWORK = {"concurrency_limit": 1, "concurrency_id": "network"}  # one job at a time has all cores
POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"


class OnlyThisServer:
    """Adds a content security policy to every answer: the browser asks no other server for anything.

    Args:
        app: an ASGI application.
    """

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        async def send_with_policy(message: dict) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY)]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def build_page(systems: dict[str, Transcriber], streaming: tuple[Recognizer | None, str], limits: Limits) -> gr.Blocks:
    """Returns the page.

    Args:
        systems: transcribers by the name that visitors see.
        streaming: a network for the live tab and its name, or None and why there is none.
        limits: of a visit.
    """
    with gr.Blocks(title="Speech recognition", analytics_enabled=False,
                   delete_cache=(60, KEPT_SECONDS)) as page:
        gr.Markdown("# Speech recognition\n"
                    f"Recordings of at most {limits.max_seconds:g} s and {limits.max_megabytes} MB, which are deleted "
                    f"after {KEPT_SECONDS // 60} minutes.")
        with gr.Tab("Record or upload"):
            _recording_tab(systems, limits)
        with gr.Tab("Live"):
            _live_tab(*streaming, limits)
        with gr.Tab("Compare"):
            _comparison_tab(systems, limits)
    return page.queue(max_size=limits.max_waiting, api_open=False)


def launch(page: gr.Blocks, host: str, port: int, limits: Limits) -> str:
    """Serves the page from a thread of its own, and returns its address. Raises OSError."""
    from starlette.middleware import Middleware

    processing_utils.async_ssrf_protected_download = _refuse_address  # else it fetches whatever URL a visitor sends
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])  # no downloads
    _, address, _ = page.launch(
        server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, share=False, ssr_mode=False,
        show_error=False, footer_links=[], enable_monitoring=False, max_file_size=limits.max_megabytes << 20,
        theme=theme, css_paths=FOLDER / "page.css",
        app_kwargs={"middleware": [Middleware(OnlyThisServer)]})
    return address


async def _refuse_address(*_, **__) -> None:
    raise gr.Error("upload the file itself, not its address", print_exception=False)


def _recording_tab(systems: dict[str, Transcriber], limits: Limits) -> None:
    audio, system = _audio(), _choice(systems, "System", 0)
    button = gr.Button("Transcribe", variant="primary")
    answer = gr.HTML(js_on_load=(FOLDER / "page.js").read_text(encoding="utf-8"))

    @_in_one_line
    def transcribe(path: str | None, name: str) -> str:
        found, = recognize(systems, [name], path, limits)
        return answer_html(found, draw(systems[name].network, found))

    button.click(transcribe, [audio, system], answer, api_name="transcribe", **NETWORK)


def _comparison_tab(systems: dict[str, Transcriber], limits: Limits) -> None:
    audio = _audio()
    with gr.Row():
        left, right = _choice(systems, "Left", 0), _choice(systems, "Right", 1)
    button, answer = gr.Button("Compare", variant="primary"), gr.HTML()

    @_in_one_line
    def compare(path: str | None, *names: str) -> str:
        return comparison_html(*recognize(systems, list(names), path, limits))

    button.click(compare, [audio, left, right], answer, api_name="compare", **NETWORK)


def _live_tab(network: Recognizer | None, name: str, limits: Limits) -> None:
    if network is None:
        gr.Markdown(f"There is no network here that can write while somebody speaks. {name}")
        return
    gr.Markdown(f"{name} writes while you speak, for at most {limits.stream_seconds:g} s.")
    streams = Streams(network, limits)

    def feed(chunk: dict) -> dict:
        try:
            live = streams.feed(chunk.get("name"), chunk.get("rate"), chunk.get("samples"), chunk.get("last"))
        except UserError as error:
            return {"html": error_html(error), "open": False}
        return {"html": live_html(live), "open": chunk["name"] in streams.open}

    gr.HTML(html_template='<button class="speak">Speak</button><output></output>', server_functions=[feed],
            js_on_load=(FOLDER / "live.js").read_text(encoding="utf-8"))


def _audio() -> gr.Audio:
    return gr.Audio(sources=["upload", "microphone"], type="filepath", label="Recording", buttons=[])


def _choice(systems: dict[str, Transcriber], label: str, index: int) -> gr.Dropdown:
    names = list(systems)
    return gr.Dropdown(names, value=names[index], label=label)


def _in_one_line(function):
    """Returns the function with its UserErrors as a line on the page; any other error shows no text there."""

    @wraps(function)
    def guarded(*args) -> str:
        try:
            return function(*args)
        except UserError as error:
            return error_html(error)

    return guarded
