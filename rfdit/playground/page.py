"""The page: its fields, and what happens when they are used. The only file that knows gradio."""

import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Event
from typing import Any

from rfdit.counted import counted
from rfdit.playground import html
from rfdit.playground.form import (
    LARGEST_FILE,
    LARGEST_SCALE,
    LARGEST_SHIFT,
    SMALLEST_SHIFT,
    SMALLEST_STRENGTH,
    STRENGTH,
    Choice,
)
from rfdit.playground.guard import Guard
from rfdit.playground.history import COLUMNS, History
from rfdit.playground.model import GenerationStopped, PlaygroundModel, Preview, Result

RANDOM_SEEDS = 2**31
WAITING = 20  # visitors in the queue; further ones are told to come back
VISITORS = 100  # whose histories are kept in memory; the one that was used longest ago goes first
FONTS = ["system-ui", "sans-serif"]  # fonts of the visitor's machine, so that none is fetched
MONO = ["ui-monospace", "monospace"]
FOLDER = Path(__file__).parent
# Brings the images into view on a narrow screen.
SCROLL = "() => document.querySelector('#status').scrollIntoView({block: 'nearest', behavior: 'smooth'})"


class Page:
    """Everything on the page of a model, as `blocks`; folder: for the files of the histories."""

    def __init__(self, *, model: PlaygroundModel, folder: Path) -> None:
        import gradio as gr

        self.model, self.form = model, model.form
        self._stops: dict[str | None, Event] = {}  # by visitor
        with gr.Blocks(title="rfdit", analytics_enabled=False) as self.blocks:
            gr.HTML(str(html.PARTS.head(model.title)))
            with gr.Row(equal_height=False):
                with gr.Column(scale=2, min_width=320):
                    self.fields = self._fields()
                with gr.Column(scale=3, min_width=320):
                    self.status = gr.HTML(html.status("Ready."), elem_id="status")
                    self.images = gr.HTML(str(html.PARTS.nothing()), elem_id="images")
                    self.command = gr.Textbox(
                        label="The same images from a shell",
                        elem_id="command",
                        interactive=False,
                        lines=2,
                        max_lines=6,
                        buttons=["copy"],
                    )
            self.history = gr.State(History(folder))
            self.heading = gr.HTML(str(html.PARTS.history()), visible=False)
            table: dict[str, Any] = {
                "show_label": False,
                "interactive": False,
                "visible": False,
                "buttons": [],
            }
            self.gallery = gr.Gallery(
                elem_id="gallery", format="png", height="auto", allow_preview=False, **table
            )
            self.table = gr.Dataframe(headers=list(COLUMNS), elem_id="table", **table)
            self._connect()

    def launch(self, *, host: str, port: int) -> None:
        """Serves the page from a thread; the page sends no request to any other host."""
        import gradio as gr
        from starlette.middleware import Middleware

        self.blocks.queue(default_concurrency_limit=1, max_size=WAITING, api_open=False)
        self.blocks.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            run_history=False,
            state_session_capacity=VISITORS,
            app_kwargs={"middleware": [Middleware(Guard)]},
            footer_links=[],
            theme=gr.themes.Base(primary_hue="blue", font=FONTS, font_mono=MONO),
            css=(FOLDER / "page.css").read_text(),
        )

    def _fields(self) -> dict[str, Any]:
        """The fields by the names of `Settings`, and the buttons."""
        import gradio as gr

        form = self.form
        fields: dict[str, Any] = {}
        solver, guidance = next(iter(form.solvers.values())), next(iter(form.guidances.values()))
        scale = guidance.scale and guidance.scale[1]

        def slider(name: str, label: str, value: Any, least: float, most: float, step: float) -> None:
            fields[name] = gr.Slider(least, most, value, step=step, label=label, elem_id=name, buttons=[])

        def dropdown(name: str, label: str, choices: Mapping[str, Choice], chosen: Choice) -> None:
            fields[name] = gr.Dropdown(
                list(choices), value=chosen.name, label=label, info=chosen.about, elem_id=name
            )

        if form.classes is None:
            fields["input"] = gr.Textbox(
                label="Prompt",
                placeholder="a small red circle",
                elem_id="prompt",
                max_lines=4,
                autofocus=True,
            )
        else:
            classes = [(name, number) for number, name in enumerate(form.classes)]
            fields["input"] = gr.Dropdown(classes, label="Class", elem_id="class", num_choices_shown=None)
        with gr.Row(visible=form.classes is None):
            fields["negative"] = gr.Textbox(
                label="Negative prompt", placeholder="what to move away from", elem_id="negative", max_lines=4
            )
        with gr.Row():
            self.start = gr.Button("Generate", variant="primary", elem_id="generate")
            self.stop = gr.Button("Stop", elem_id="stop", min_width=80, scale=0)
        with gr.Row():
            fields["seed"] = gr.Textbox("0", label="Seed", elem_id="seed", max_lines=1, min_width=110)
            self.random = gr.Button("Random", elem_id="random", min_width=104, scale=0)
        slider("count", "Images", 1, 1, form.max_images, 1)
        with gr.Group():
            dropdown("solver", "Solver", form.solvers, solver)
            slider("steps", "Steps", solver.node["steps"], 1, form.max_steps, 1)
            slider("shift", "Time shift", solver.node["shift"], SMALLEST_SHIFT, LARGEST_SHIFT, 0.1)
        with gr.Group():
            dropdown("guidance", "Guidance", form.guidances, guidance)
            slider("scale", "Scale", scale, 0, LARGEST_SCALE, 0.1)
        with gr.Accordion("Start from an image", open=False):
            # A field of the form's, and not gradio's own, which would write files and fetch them from addresses.
            fields["image"] = gr.HTML(
                "",
                html_template=(FOLDER / "upload.html").read_text(),
                js_on_load=(FOLDER / "upload.js").read_text(),
                elem_id="upload",
                largest=LARGEST_FILE,
            )
            slider("strength", "Strength", STRENGTH, SMALLEST_STRENGTH, 1, 0.05)
        return fields

    def _connect(self) -> None:
        """Connects buttons and fields with their actions."""
        import gradio as gr

        fields, shown = list(self.fields.values()), [self.status, self.images, self.command]
        triggers = [self.start.click]
        if self.form.classes is None:
            triggers += [self.fields["input"].submit, self.fields["negative"].submit]

        # gradio's own way to cancel would let the sampling continue.
        def start(request: gr.Request, *values: Any) -> Iterator[dict[Any, Any]]:
            self._stops[request.session_hash] = stop = Event()
            yield from self._generate(stop, *values)

        def end(request: gr.Request) -> None:
            if stop := self._stops.pop(request.session_hash, None):
                stop.set()

        def restore_image(history: History, event: gr.SelectData) -> dict[Any, Any]:
            return self._restored(history.result_of(event.index))

        def restore_row(history: History, event: gr.SelectData) -> dict[Any, Any]:
            return self._restored(history.entries[event.index[0]].result)

        gr.on(
            triggers,
            start,
            [*fields, self.history],
            [*shown, self.history, self.heading, self.gallery, self.table],
            show_progress="minimal",
            show_progress_on=self.status,
            api_visibility="private",
        )
        self.start.click(None, js=SCROLL)
        aside: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        self.stop.click(end, None, None, **aside)
        self.blocks.unload(end)  # no one waits for the images of a closed tab, and others wait for the model
        self.random.click(lambda: str(secrets.randbelow(RANDOM_SEEDS)), None, self.fields["seed"], **aside)
        for field, choose in (
            (self.fields["solver"], self._choose_solver),
            (self.fields["guidance"], self._choose_guidance),
        ):
            field.input(choose, field, fields, **aside)
        self.gallery.select(restore_image, self.history, [*fields, *shown], **aside)
        self.table.select(restore_row, self.history, [*fields, *shown], **aside)

    def _generate(self, stop: Event, *values: Any) -> Iterator[dict[Any, Any]]:
        """From the fields' values and the history to the page's changes, as they come."""
        import gradio as gr

        *given, history = values
        yield {self.status: html.status("Sampling begins.")}
        try:
            for event in self.model(self.form.read(dict(zip(self.fields, given, strict=True))), stop):
                if isinstance(event, Preview):
                    sentence = f"step {event.step} of {event.steps}, t = {event.t:.2f}"
                    bar = html.status(sentence, share=event.share)
                    yield {self.status: bar, self.images: html.gallery(event.images)}
                else:
                    history = history.added(event)
                    yield {
                        **self._shown(event),
                        self.history: history,
                        self.heading: gr.update(visible=True),
                        self.gallery: gr.update(value=history.gallery(), visible=True),
                        self.table: gr.update(value=[e.row for e in history.entries], visible=True),
                    }
        except ValueError as error:
            yield {self.status: html.status(str(error), kind="error")}
        except GenerationStopped:
            yield {self.status: html.status("Stopped.")}

    def _shown(self, result: Result) -> dict[Any, str]:
        n, seed = len(result.images), result.settings.seed
        cost = f"{counted(result.evaluations, 'evaluation')} of the velocity in {result.seconds:.1f} s"
        note = f"; {result.note}" if result.note else ""
        return {
            self.status: html.status(f"{counted(n, 'image')}: {cost}{note}", kind="done"),
            self.images: html.gallery(result.images, [f"seed_{seed}_{i:05d}.png" for i in range(n)]),
            self.command: result.command,
        }

    def _choose_solver(self, name: str) -> dict[Any, Any]:
        """A solver's description, with the steps and the shift of its YAML."""
        import gradio as gr

        choice = self.form.solvers[name]
        numbers = {self.fields[name]: gr.update(value=choice.node[name]) for name in ("steps", "shift")}
        return {self.fields["solver"]: gr.update(info=choice.about)} | numbers

    def _choose_guidance(self, name: str) -> dict[Any, Any]:
        """A guidance's description and scale; without a scale there is nothing to move away from either."""
        import gradio as gr

        choice = self.form.guidances[name]
        visible = gr.update(visible=choice.scale is not None)
        return {
            self.fields["guidance"]: gr.update(info=choice.about),
            self.fields["scale"]: visible | ({"value": choice.scale[1]} if choice.scale else {}),
            self.fields["negative"]: visible,
        }

    def _restored(self, result: Result) -> dict[Any, Any]:
        """A result with its settings, as when it was sampled."""
        import gradio as gr

        settings = result.settings
        values = {name: getattr(settings, name) for name in self.fields}
        values |= {"seed": str(settings.seed), "negative": settings.negative or ""}
        values |= {"image": settings.image.field if settings.image else ""}
        changes = self._choose_solver(settings.solver) | self._choose_guidance(settings.guidance)
        for name, value in values.items():
            if value is not None:
                field = self.fields[name]
                changes[field] = changes.get(field, gr.update()) | {"value": value}
        return changes | self._shown(result)
