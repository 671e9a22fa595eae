"""The pipeline that exported folders contain takes what diffusers' own pipelines take."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from diffusers.callbacks import SD3CFGCutoffCallback
from torch import Tensor

from rfdit.interchange.clip_tokenizer import write_clip_tokenizer
from rfdit.interchange.shipped.caption_embedding import CaptionEmbedding
from rfdit.interchange.shipped.pipeline import RectifiedFlowPipeline
from rfdit.interchange.shipped.rectified_flow_dit import RectifiedFlowDiT
from rfdit.interchange.shipped.rectified_flow_mmdit import RectifiedFlowMMDiT

LENGTH, WIDTH = 12, 16
TWO = ["a small red circle", "a star"]  # of different numbers of tokens
Folders = dict[str, str]
Generate = Callable[..., Any]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Saved pipelines with random weights: one of captions and one of five classes."""
    from transformers import CLIPTokenizer

    root = tmp_path_factory.mktemp("pipelines")
    write_clip_tokenizer(root / "tokenizer", length=LENGTH)
    torch.manual_seed(0)
    size = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 3, "num_layers": 1}
    mmdit = RectifiedFlowMMDiT(
        **size,
        sample_size=16,
        patch_size=4,
        joint_attention_dim=WIDTH,
        caption_projection_dim=24,
        pooled_projection_dim=WIDTH,
        out_channels=3,
        pos_embed_max_size=4,
    )
    encoder = CaptionEmbedding(vocabulary=49408, width=WIDTH, length=LENGTH)
    dit = RectifiedFlowDiT(**size, sample_size=16, patch_size=4, num_embeds_ada_norm=5)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)
    latents = {"latent_width": 16, "downsampling": 1}
    captions = RectifiedFlowPipeline(
        transformer=mmdit,
        scheduler=scheduler,
        text_encoder=encoder,
        tokenizer=CLIPTokenizer.from_pretrained(root / "tokenizer"),
        latent_height=8,
        **latents,
    )
    classes = RectifiedFlowPipeline(transformer=dit, scheduler=scheduler, latent_height=16, **latents)
    for name, pipeline in {"captions": captions, "classes": classes}.items():
        pipeline.save_pretrained(root / name)
    return {name: str(root / name) for name in ("captions", "classes")}


@pytest.fixture(autouse=True)
def _code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where diffusers puts a folder's code before it imports it."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def load(folder: str | Path, **settings: Any) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(
        str(folder), **{"trust_remote_code": True, "low_cpu_mem_usage": False} | settings
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def captions(folders: Folders) -> Any:
    return load(folders["captions"])


@pytest.fixture
def classes(folders: Folders) -> Any:
    return load(folders["classes"])


def run(pipeline: Any, *inputs: Any, **settings: Any) -> Tensor:
    """The images as tensors, in two steps."""
    return pipeline(*inputs, **{"num_inference_steps": 2, "output_type": "pt"} | settings).images


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in numbers]


def close(a: Tensor, b: Tensor) -> bool:
    """Equal up to the rounding of batches of other sizes."""
    return torch.allclose(a, b, atol=1e-5)


def test_each_image_of_a_batch_is_that_of_its_own_call(captions: Any) -> None:
    """Prompts, negative prompts and generators are lists with one for each; images of a prompt follow each other."""
    batch = run(captions, TWO, negative_prompt=["blurry", "a very dark square"], generator=seeds(1, 2))
    for i in range(2):
        negative = ["blurry", "a very dark square"][i]
        assert close(
            batch[i : i + 1], run(captions, TWO[i], negative_prompt=negative, generator=seeds(i + 1))
        )
    several = run(captions, TWO, num_images_per_prompt=2, generator=seeds(1, 2, 3, 4))
    for i in range(4):
        assert close(several[i : i + 1], run(captions, TWO[i // 2], generator=seeds(i + 1)))
    one = run(captions, TWO, negative_prompt="blurry", generator=seeds(1, 2))
    assert torch.equal(one, run(captions, TWO, negative_prompt=["blurry"] * 2, generator=seeds(1, 2)))
    assert not close(one, batch)


def test_classes_have_two_names_and_several_images(classes: Any) -> None:
    expected = run(classes, [3, 1], num_images_per_prompt=2, generator=seeds(1, 2, 3, 4))
    for labels in ([3, 1], torch.tensor([3, 1])):
        given = {"class_labels": labels, "num_images_per_prompt": 2, "generator": seeds(1, 2, 3, 4)}
        assert torch.equal(run(classes, **given), expected)
    assert close(expected[2:3], run(classes, 1, generator=seeds(3)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"negative_prompt": ["a", "b", "c"]}, "negative_prompt has 3 entries and prompt has 2; give as many"),
        ({"negative_prompt": ["a"]}, "negative_prompt has 1 entries and prompt has 2; give as many"),
        ({"negative_prompt": 3}, "negative_prompt=3: give a caption, or a list of them"),
        ({"prompt": []}, "prompt=[]: give a caption, or a list of them"),
        ({"prompt": ["a", 3]}, "prompt=['a', 3]: give a caption, or a list of them"),
        ({"prompt": None}, "give prompt or prompt_embeds, and not both"),
        ({"prompt_embeds": torch.zeros(1, 3, WIDTH)}, "give prompt or prompt_embeds, and not both"),
        ({"prompt": None, "prompt_embeds": torch.zeros(1, 3, WIDTH)}, "needs pooled_prompt_embeds, of the shape"),
        ({"class_labels": 3}, "class_labels is given, but this model knows captions; give prompt"),
        ({"generator": seeds(1) * 3}, "generator has 3 entries for 2 images; give one for each, or one"),
        ({"latents": torch.zeros(2, 3, 16, 16)}, "latents have the shape (2, 3, 16, 16); (2, 3, 8, 16) is needed"),
        ({"height": 16}, "height=16, width=16 is not possible: this model makes images of height=8, width=16"),
        ({"num_inference_steps": 0}, "num_inference_steps=0 must be a whole number of at least 1"),
        ({"num_images_per_prompt": 1.5}, "num_images_per_prompt=1.5 must be a whole number of at least 1"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan must be a finite number"),
        ({"output_type": "jpg"}, "output_type='jpg' is unknown; use pil, np, pt, latent"),
        (
            {"callback_on_step_end_tensor_inputs": ["class_labels"]},
            "callback_on_step_end_tensor_inputs has class_labels; use latents, prompt_embeds, pooled_prompt_embeds",
        ),
    ],
)  # fmt: skip
def test_what_captions_cannot_be_is_said(captions: Any, inputs: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        run(captions, **{"prompt": TWO} | inputs)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"class_labels": 5}, "class_labels=5: give numbers of classes, from 0 to 4"),  # the null class
        ({"class_labels": [0, -1]}, "class_labels=[0, -1]: give numbers of classes, from 0 to 4"),
        ({"class_labels": 1.5}, "class_labels=1.5: give numbers of classes, from 0 to 4"),
        ({"prompt": "a cat"}, "class_labels='a cat': give numbers of classes, from 0 to 4"),
        ({}, "give class_labels, the numbers of the classes"),
        ({"class_labels": 1, "negative_prompt": "blurry"}, "this model knows classes, not captions"),
    ],
)
def test_what_classes_cannot_be_is_said(classes: Any, inputs: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        run(classes, **inputs)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["captions", "classes"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_dtype_starts_from_the_same_noise(folders: Folders, kind: str, dtype: torch.dtype) -> None:
    inputs = {"captions": TWO, "classes": [1, 2]}[kind]
    expected = run(load(folders[kind]), inputs, generator=seeds(5)[0])
    loaded = run(load(folders[kind], torch_dtype=dtype), inputs, generator=seeds(5)[0])
    moved = run(load(folders[kind]).to("cpu", dtype), inputs, generator=seeds(5)[0])
    assert loaded.dtype == torch.float32
    assert (loaded - expected).abs().mean() < 0.02
    assert (moved - expected).abs().mean() < 0.02


@pytest.mark.parametrize("kind", ["captions", "classes"])
def test_a_saved_copy_makes_the_same_images(folders: Folders, kind: str, tmp_path: Path) -> None:
    """The copy has all that loading needs: code of its own, and no name that only this process knows."""
    inputs = {"captions": TWO, "classes": [1, 2]}[kind]
    expected = run(load(folders[kind]), inputs, generator=seeds(5)[0])
    load(folders[kind]).save_pretrained(tmp_path / "copy")
    for module in [name for name in sys.modules if name.startswith("diffusers_modules")]:
        del sys.modules[module]
    (tmp_path / "modules").rename(tmp_path / "gone")
    for loading in ({}, {"custom_pipeline": "pipeline"}, {"custom_pipeline": str(tmp_path / "copy")}):
        assert torch.equal(run(load(tmp_path / "copy", **loading), inputs, generator=seeds(5)[0]), expected)
    places = (Path(folders[kind]), tmp_path / "copy")
    first, again = (json.loads((place / "model_index.json").read_text()) for place in places)
    assert first == {name: value for name, value in again.items() if name != "_name_or_path"}


def test_a_pipeline_is_saved_with_its_own_code_after_another_was_loaded(
    folders: Folders, tmp_path: Path
) -> None:
    """diffusers imports each pipeline.py from the same place."""
    pipeline = load(folders["classes"])
    other = Path(sys.modules[type(pipeline).__module__].__file__ or "")
    other.write_text("raise SystemExit('the code of another pipeline')\n")
    pipeline.save_pretrained(tmp_path / "copy")
    assert run(load(tmp_path / "copy"), 1).shape == (1, 3, 16, 16)


def test_every_kind_of_output(captions: Any) -> None:
    def made(**settings: Any) -> Any:
        return captions(
            "a star", num_inference_steps=2, generator=seeds(1)[0], height=8, width=16, **settings
        )

    pt = made(output_type="pt").images
    assert pt.shape == (1, 3, 8, 16)
    assert torch.equal(pt, (made(output_type="latent").images / 2 + 0.5).clamp(0, 1))
    array = made(output_type="np", return_dict=False)[0]
    assert np.array_equal(array, pt.permute(0, 2, 3, 1).numpy())
    (image,) = made().images
    assert np.array_equal(np.asarray(image), (array[0] * 255).round().astype("uint8"))


def test_guidance_is_off_at_one(captions: Any) -> None:
    off = [run(captions, TWO, guidance_scale=scale, generator=seeds(1, 2)) for scale in (1.0, 0.0)]
    assert torch.equal(*off)
    on = run(captions, TWO, guidance_scale=3.0, generator=seeds(1, 2))
    assert not close(on, off[0])


def test_callbacks_see_and_change_the_tensors_of_each_step(captions: Any) -> None:
    seen: list[tuple[int, float, list[torch.Size]]] = []

    def watch(pipeline: Any, step: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append((step, float(t), [x.shape for x in tensors.values()]))
        assert pipeline.num_timesteps == 2
        return tensors

    names = ["latents", "prompt_embeds", "pooled_prompt_embeds"]
    watched = run(
        captions,
        TWO,
        callback_on_step_end=watch,
        callback_on_step_end_tensor_inputs=names,
        generator=seeds(1, 2),
    )
    assert torch.equal(watched, run(captions, TWO, generator=seeds(1, 2)))
    shapes = [(2, 3, 8, 16), (4, 6, WIDTH), (4, WIDTH)]  # of negatives and prompts; six tokens at most
    assert seen == [(0, 1000.0, shapes), (1, pytest.approx(2000 / 3), shapes)]

    black = run(captions, TWO, callback_on_step_end=lambda *_: {"latents": torch.full((2, 3, 8, 16), -9.0)})
    assert torch.equal(black, torch.zeros(2, 3, 8, 16))
    plain = run(captions, TWO, callback_on_step_end=lambda *_: None, generator=seeds(1, 2))
    assert torch.equal(plain, watched)


def test_a_callback_can_stop_the_steps_or_the_guidance(captions: Any) -> None:
    def stop(pipeline: Any, *_: Any) -> None:
        pipeline._interrupt = True

    one = run(captions, TWO, sigmas=[1.0], generator=seeds(1, 2), output_type="latent")
    assert one.shape == (2, 3, 8, 16)
    steps: list[int] = []
    run(
        captions, TWO, num_inference_steps=4, callback_on_step_end=lambda p, i, *_: steps.append(i) or stop(p)
    )
    assert steps == [0]
    settings = {"num_inference_steps": 4, "negative_prompt": "a large blue square"}
    callback = SD3CFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=0)
    cut = run(captions, "a star", **settings, generator=seeds(1), callback_on_step_end=callback)
    assert cut.isfinite().all()
    assert not close(cut, run(captions, "a star", **settings, generator=seeds(1)))


def test_other_schedulers_fit(captions: Any) -> None:
    expected = run(captions, TWO, num_inference_steps=50, generator=seeds(1, 2))
    captions.scheduler = FlowMatchHeunDiscreteScheduler.from_config(captions.scheduler.config)
    assert (run(captions, TWO, num_inference_steps=25, generator=seeds(1, 2)) - expected).abs().mean() < 0.02


def test_a_pipeline_is_made_of_the_parts_of_another(captions: Any) -> None:
    other = RectifiedFlowPipeline(**captions.components, **captions.parameters)
    other.set_progress_bar_config(disable=True)
    assert torch.equal(run(other, TWO, generator=seeds(1, 2)), run(captions, TWO, generator=seeds(1, 2)))


def test_every_part_is_offloaded_in_turn(captions: Any) -> None:
    modules = {name for name, part in captions.components.items() if isinstance(part, torch.nn.Module)}
    assert modules <= set(captions.model_cpu_offload_seq.split("->"))


def test_what_is_cut_off_a_prompt_is_said(captions: Any, caplog: pytest.LogCaptureFixture) -> None:
    run(captions, "one two three four five six seven eight nine ten eleven twelve")
    assert "reads 12 tokens of a prompt, and this is cut off: eleven twelve" in caplog.text.replace(
        "</w>", ""
    )


def test_images_that_are_not_finite_are_refused(captions: Any) -> None:
    with torch.no_grad():
        captions.transformer.proj_out.bias.fill_(float("inf"))
    with pytest.raises(
        ValueError, match=r"images are not finite in torch\.float32; use .* a smaller guidance_scale$"
    ):
        run(captions, TWO)
