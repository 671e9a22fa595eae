"""The page: its fields, and what happens when they are used. The only place that knows gradio."""

import secrets
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import Any

from rfdit.playground import html
from rfdit.playground.history import COLUMNS, History
from rfdit.playground.painter import Glimpse, Painter, Painting, Stopped

RANDOM_SEEDS = 2**31
WAITING = 20  # visitors in the queue; further ones are told to come back
FONTS = ["system-ui", "sans-serif"]  # of the visitor's machine: none is fetched
MONO = ["ui-monospace", "monospace"]
CSS = (Path(__file__).parent / "page.css").read_text()


class Page:
    """Everything on it, as `blocks`, for one painter.

    title: what the model is, in a line. folder: for the files of the histories.
    """

    def __init__(self, *, painter: Painter, title: str, folder: Path) -> None:
        import gradio as gr

        self.painter, self.form = painter, painter.form
        self._stops: dict[str | None, Event] = {}  # by visitor
        with gr.Blocks(title="rfdit", analytics_enabled=False) as self.blocks:
            gr.HTML(f'<h1>rfdit</h1><p class="about">{html.text(title)}</p>')
            with gr.Row(equal_height=False):
                with gr.Column(scale=2, min_width=320):
                    self.fields = self._fields()
                with gr.Column(scale=3, min_width=320):
                    self.status = gr.HTML(html.message("Ready."), elem_id="status")
                    self.pictures = gr.HTML(html.nothing_yet(), elem_id="pictures")
                    self.command = gr.Textbox(
                        label="The same pictures from a shell",
                        elem_id="command",
                        interactive=False,
                        lines=2,
                        max_lines=6,
                        buttons=["copy"],
                    )
            self.history = gr.State(History(folder))
            self.heading = gr.HTML("<h2>History</h2>A click brings the settings back.", visible=False)
            self.gallery = gr.Gallery(
                elem_id="gallery",
                format="png",
                show_label=False,
                columns=8,
                height="auto",
                allow_preview=False,
                interactive=False,
                visible=False,
                buttons=[],
            )
            self.table = gr.Dataframe(
                headers=list(COLUMNS),
                column_widths=[f"{width}px" for width in COLUMNS.values()],
                elem_id="table",
                show_label=False,
                interactive=False,
                visible=False,
                buttons=[],
            )
            self._connect()

    def launch(self, *, host: str, port: int) -> None:
        """Serves the page from a thread of its own, to nobody else and without a word to anybody."""
        import gradio as gr

        self.blocks.queue(default_concurrency_limit=1, max_size=WAITING, api_open=False)
        self.blocks.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            run_history=False,
            footer_links=[],
            theme=gr.themes.Base(primary_hue="blue", font=FONTS, font_mono=MONO),
            css=CSS,
        )

    def _fields(self) -> dict[str, Any]:
        """The fields by the names of `Settings`, and the buttons."""
        import gradio as gr

        form = self.form
        solver, guidance = next(iter(form.solvers.values())), next(iter(form.guidances.values()))
        fields: dict[str, Any] = {}
        if form.classes is None:
            fields["given"] = gr.Textbox(
                label="Prompt",
                placeholder="a small red circle",
                elem_id="prompt",
                max_lines=4,
                autofocus=True,
            )
        else:
            classes = [(name, number) for number, name in enumerate(form.classes)]
            fields["given"] = gr.Dropdown(classes, label="Class", elem_id="class", num_choices_shown=None)
        captions = form.classes is None
        with gr.Row(visible=captions):
            fields["negative"] = gr.Textbox(
                label="Negative prompt", placeholder="what to move away from", elem_id="negative", max_lines=4
            )
        with gr.Row():
            fields["seed"] = gr.Textbox(
                "0", label="Seed", elem_id="seed", max_lines=1, scale=2, min_width=110
            )
            self.random = gr.Button("Random", elem_id="random", min_width=104, scale=0)
            fields["count"] = gr.Number(1, label="Pictures", elem_id="count", min_width=80)
        with gr.Group(), gr.Row():
            fields["solver"] = gr.Dropdown(
                list(form.solvers),
                value=solver.name,
                label="Solver",
                info=solver.about,
                elem_id="solver",
                scale=2,
            )
            fields["steps"] = gr.Number(solver.steps, label="Steps", elem_id="steps", min_width=80)
            fields["shift"] = gr.Number(solver.shift, label="Time shift", elem_id="shift", min_width=80)
        with gr.Group(), gr.Row():
            fields["guidance"] = gr.Dropdown(
                list(form.guidances),
                value=guidance.name,
                label="Guidance",
                info=guidance.about,
                elem_id="guidance",
                scale=2,
            )
            fields["scale"] = gr.Number(guidance.scale, label="Scale", elem_id="scale", min_width=80)
        with gr.Row():
            self.paint = gr.Button("Paint", variant="primary", elem_id="paint")
            self.stop = gr.Button("Stop", elem_id="stop", min_width=80, scale=0)
        return fields

    def _connect(self) -> None:
        import gradio as gr

        fields, shown = list(self.fields.values()), [self.status, self.pictures, self.command]
        triggers = [self.paint.click]
        if isinstance(self.fields["given"], gr.Textbox):
            triggers += [self.fields["given"].submit, self.fields["negative"].submit]

        # gradio's own way to cancel would leave the sampling going.
        def paint(request: gr.Request, *values: Any) -> Iterator[dict[Any, Any]]:
            self._stops[request.session_hash] = stop = Event()
            yield from self._paint(stop, *values)

        def end(request: gr.Request) -> None:
            if stop := self._stops.pop(request.session_hash, None):
                stop.set()

        gr.on(
            triggers,
            paint,
            [*fields, self.history],
            [*shown, self.history, self.heading, self.gallery, self.table],
            show_progress="minimal",
            show_progress_on=self.status,
            api_visibility="private",
        )
        aside: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        self.stop.click(end, None, None, **aside)
        self.blocks.unload(end)  # who has closed the tab waits for nothing, and others do
        self.random.click(lambda: str(secrets.randbelow(RANDOM_SEEDS)), None, self.fields["seed"], **aside)
        own = [self.fields[name] for name in ("solver", "steps", "shift")]
        self.fields["solver"].input(self._choose_solver, self.fields["solver"], own, **aside)
        own = [self.fields[name] for name in ("guidance", "scale", "negative")]
        self.fields["guidance"].input(self._choose_guidance, self.fields["guidance"], own, **aside)

        def restore_picture(history: History, event: gr.SelectData) -> dict[Any, Any]:
            return self._restored(history.painting_of(event.index))

        def restore_row(history: History, event: gr.SelectData) -> dict[Any, Any]:
            return self._restored(history.paintings[event.index[0]])

        self.gallery.select(restore_picture, self.history, [*fields, *shown], **aside)
        self.table.select(restore_row, self.history, [*fields, *shown], **aside)

    def _paint(self, stop: Event, *values: Any) -> Iterator[dict[Any, Any]]:
        """From the fields' values and the history to the page's changes, as they come."""
        import gradio as gr

        *given, history = values
        yield {self.status: html.message("Sampling begins.")}
        try:
            for event in self.painter(self.form.read(dict(zip(self.fields, given, strict=True))), stop):
                if isinstance(event, Glimpse):
                    yield {self.status: html.progress(event), self.pictures: html.pictures(event.images)}
                else:
                    history = history.added(event)
                    yield {
                        **self._shown(event),
                        self.history: history,
                        self.heading: gr.update(visible=True),
                        self.gallery: gr.update(value=history.gallery(), visible=True),
                        self.table: gr.update(value=history.table(), visible=True),
                    }
        except ValueError as error:
            yield {self.status: html.error(str(error))}
        except Stopped:
            yield {self.status: html.message("Stopped.")}

    def _shown(self, painting: Painting) -> dict[Any, str]:
        seed = painting.settings.seed
        names = [f"seed_{seed}_{i:05d}.png" for i in range(len(painting.images))]
        return {
            self.status: html.finished(painting),
            self.pictures: html.pictures(painting.images, names),
            self.command: painting.command,
        }

    def _choose_solver(self, name: str) -> list[Any]:
        """With the steps and the shift that it begins with."""
        import gradio as gr

        choice = self.form.solvers[name]
        return [gr.update(info=choice.about), choice.steps, choice.shift]

    def _choose_guidance(self, name: str) -> list[Any]:
        """With its scale, if it has one; without one there is nothing to move away from either."""
        import gradio as gr

        choice = self.form.guidances[name]
        guides = choice.setting is not None
        scale = gr.update(value=choice.scale, visible=True) if guides else gr.update(visible=False)
        return [gr.update(info=choice.about), scale, gr.update(visible=guides)]

    def _restored(self, painting: Painting) -> dict[Any, Any]:
        """A painting with its settings, as when it was made."""
        import gradio as gr

        settings = painting.settings
        values = asdict(settings) | {"seed": str(settings.seed), "negative": settings.negative or ""}
        changes = {field: gr.update(value=values[name]) for name, field in self.fields.items()}
        changes[self.fields["solver"]]["info"] = self.form.solvers[settings.solver].about
        changes[self.fields["guidance"]]["info"] = self.form.guidances[settings.guidance].about
        for name in ("scale", "negative"):
            changes[self.fields[name]]["visible"] = settings.scale is not None
        return {**changes, **self._shown(painting)}
