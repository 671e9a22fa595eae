"""Stored samples are read back, and a cache refuses a run that it does not fit."""

import dataclasses
import math
from pathlib import Path

import fsspec
import pytest
import torch

from rfdit.batch import Condition
from rfdit.config.build import build
from rfdit.data.latents.decoder import LatentDecoder, pack, to_stored, unpack_condition
from rfdit.data.latents.manifest import FORMAT, LatentManifest, read_manifest
from rfdit.data.sample import Decoder, RawSample, collate
from rfdit.data.skips import SkippedSampleError, SkipReason
from rfdit.storage.checked import checked_json

AUTOENCODER = {
    "_target_": "rfdit.Tiny",
    "name": "taesd",
    "latent_channels": 4,
    "downsampling": 8,
    "scale": 1.0,
    "source": "here",
}
TEXT = {"_target_": "rfdit.Text", "width": 2, "length": 5, "source": "here"}
TEACHER = {"_target_": "rfdit.Patches", "model": "vit", "image_size": 56, "weights": "there"}
MANIFEST = LatentManifest(
    latents={"name": "taesd", "channels": 4, "downsampling": 8, "scale": 1.0, "shift": 0.0},
    resolution=[64, 96],
    dtype="auto",
    autoencoder={name: value for name, value in AUTOENCODER.items() if name != "source"},
    text_encoder={name: value for name, value in TEXT.items() if name != "source"},
    weights={
        "autoencoder": {"sha256": "a" * 64, "place": "autoencoder.source=here"},
        "text_encoder": {"sha256": "c" * 64, "place": "text_encoder.source=here"},
    },
    arithmetic={"autoencoder": "fp32", "text_encoder": "fp32"},
    decoder={"caption_key": "txt"},
    filters={},
    shards={"000": "/images/000.tar"},
    command="cd /x && rfdit encode",
)
SIZE = (64, 96)


def decoder(**changes: object) -> LatentDecoder:
    return LatentDecoder(**({"autoencoder": AUTOENCODER, "text_encoder": TEXT} | changes))  # type: ignore[arg-type]


def features(real: int, length: int = 5) -> Condition:
    """One row whose first `real` tokens are real."""
    return Condition(
        pooled=torch.randn(1, 3), tokens=torch.randn(1, length, 2), mask=torch.arange(length)[None] < real
    )


def raw(condition: Condition | None = None, **files: bytes) -> RawSample:
    latents = pack(torch.ones(4, 8, 12), condition, dtype="auto", files=files)
    return {"__key__": "7", "safetensors": latents, **files}


def write_manifest(folder: Path, **changes: object) -> str:
    """A folder of one shard, which need not exist; returns that shard."""
    folder.mkdir(exist_ok=True)
    (folder / "latents.json").write_bytes(dataclasses.replace(MANIFEST, **changes).to_json())
    return str(folder / "000.tar")


def test_auto_stores_what_was_computed() -> None:
    exact = torch.randn(4, 8, 8)
    rounded = exact.bfloat16().float()
    assert to_stored(exact, "auto").dtype == torch.float32
    assert to_stored(rounded, "auto").dtype == torch.bfloat16
    for values in (exact, rounded):
        assert torch.equal(to_stored(values, "auto").float(), values)


@pytest.mark.parametrize(("dtype", "bits"), [("bf16", 8), ("fp16", 11), ("fp32", 24)])
def test_a_dtype_has_its_precision(dtype: str, bits: int) -> None:
    values = torch.rand(1000) + 1
    assert (to_stored(values, dtype).float() / values - 1).abs().max() <= 2.0**-bits


def test_what_fp16_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dtype=fp16 cannot hold 7e\+04; use dtype=bf16 or dtype=auto"):
        to_stored(torch.tensor([7e4]), "fp16")


@pytest.mark.parametrize("real", [1, 3, 5])
def test_text_features_come_back(real: int) -> None:
    condition = features(real)
    back = decoder()(raw(condition), SIZE).condition
    assert back is not None
    assert torch.equal(back.pooled, condition.pooled)
    assert torch.equal(back.mask, condition.mask)
    assert torch.equal(back.tokens[condition.mask], condition.tokens[condition.mask])
    assert not back.tokens[~condition.mask].any()


def test_the_padding_is_not_stored() -> None:
    sizes = [len(pack(torch.ones(4, 1, 1), features(real, length=1000), dtype="fp32")) for real in (10, 510)]
    assert sizes[1] - sizes[0] == pytest.approx(500 * (2 * 4 + 1), abs=16)


def test_a_gap_in_the_mask_survives() -> None:
    condition = dataclasses.replace(features(5), mask=torch.tensor([[True, False, True, False, False]]))
    assert torch.equal(decoder()(raw(condition), SIZE).condition.mask, condition.mask)


def test_pooled_features_without_tokens() -> None:
    pooled = torch.randn(1, 3)
    back = unpack_condition({"pooled": pooled[0]}, length=5)
    assert torch.equal(back.pooled, pooled)
    assert back.tokens is None


def test_samples_become_a_batch() -> None:
    decode: Decoder = decoder()
    raws = [raw(features(real), txt="été".encode(), cls=b"3") for real in (2, 4)]
    batch = collate([decode(sample, SIZE) for sample in raws], torch.arange(2))
    assert batch.images is None
    assert batch.moments.shape == (2, 4, 8, 12)
    assert batch.captions == ["été", "été"]
    assert batch.labels.tolist() == [3, 3]
    assert batch.condition.mask.sum(dim=1).tolist() == [2, 4]


def test_text_features_can_be_left_alone() -> None:
    for decode in (decoder(text=False), decoder(text_encoder=None)):
        sample = decode(raw(features(2), txt=b"a cat"), SIZE)
        assert sample.condition is None
        assert sample.caption == "a cat"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"__key__": "7", "jpg": b"an image"}, SkipReason.MISSING_LATENT),
        ({"__key__": "7", "safetensors": b"no tensors"}, SkipReason.CORRUPT_LATENT),
        ({"__key__": "7", "safetensors": raw()["safetensors"][:-9]}, SkipReason.CORRUPT_LATENT),
        (dict(raw(cls=b"cat")), SkipReason.LABEL_NOT_A_CLASS),
        *(
            ({"__key__": "7", "safetensors": pack(moments, None, dtype="auto")}, reason)
            for moments, reason in (
                (torch.full((4, 8, 12), math.nan), SkipReason.NON_FINITE_LATENT),
                (torch.full((4, 8, 12), math.inf), SkipReason.NON_FINITE_LATENT),
                (torch.ones(4, 8, 8), SkipReason.CORRUPT_LATENT),
            )
        ),
    ],
)
def test_damage_is_named(files: RawSample, reason: SkipReason) -> None:
    with pytest.raises(SkippedSampleError) as error:
        decoder()(files, SIZE)
    assert error.value.reason == reason


def test_every_changed_byte_is_noticed() -> None:
    whole = raw(features(2), txt=b"a cat", cls=b"3")
    assert decoder()(whole, SIZE).label == 3
    for name in ("safetensors", "txt", "cls"):
        data = bytes(whole[name])
        for place in range(len(data)):
            changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
            with pytest.raises(SkippedSampleError, match="corrupt_latent"):
                decoder()({**whole, name: changed}, SIZE)
    with pytest.raises(SkippedSampleError, match="corrupt_latent"):
        decoder()({name: whole[name] for name in ("__key__", "safetensors", "cls")}, SIZE)


def test_features_of_images_are_read_where_there_is_a_teacher() -> None:
    features = torch.randn(6, 2, 2)
    files = {"__key__": "7", "safetensors": pack(torch.ones(4, 8, 12), None, dtype="auto", features=features)}
    found = decoder(teacher=TEACHER)(files, SIZE).features
    assert found is not None
    assert torch.equal(found, features)
    assert decoder()(files, SIZE).features is None
    with pytest.raises(SkippedSampleError, match="corrupt_latent"):
        decoder(teacher=TEACHER)(raw(), SIZE)
    broken = pack(torch.ones(4, 8, 12), None, dtype="auto", features=torch.full((6, 2, 2), math.nan))
    with pytest.raises(SkippedSampleError, match="non_finite_latent"):
        decoder(teacher=TEACHER)({"__key__": "7", "safetensors": broken}, SIZE)


def test_a_teacher_must_be_that_of_the_cache(tmp_path: Path) -> None:
    weights = {"sha256": "e" * 64, "place": "auxiliary.teacher.weights=here"}
    settings = {name: value for name, value in TEACHER.items() if name != "weights"}
    shard = write_manifest(
        tmp_path, teacher=settings, weights=MANIFEST.weights | {"auxiliary.teacher": weights}
    )
    decoder().check([shard], SIZE)  # a run without it
    decoder(teacher=TEACHER, weights={"auxiliary.teacher": weights}).check([shard], SIZE)
    with pytest.raises(
        ValueError, match=r"auxiliary\.teacher\.image_size=28 \(the cache has 56\); set what the cache has"
    ):
        decoder(teacher=TEACHER | {"image_size": 28}).check([shard], SIZE)
    other = weights | {"sha256": "f" * 64}
    with pytest.raises(
        ValueError, match=r"teacher\.weights=here has the weights f{12} \(the cache has e{12}, of auxiliary"
    ):
        decoder(teacher=TEACHER, weights={"auxiliary.teacher": other}).check([shard], SIZE)
    with pytest.raises(ValueError, match="auxiliary reads features of the images, and the cache has none"):
        decoder(teacher=TEACHER).check([write_manifest(tmp_path)], SIZE)


def test_the_same_settings_pass_wherever_the_weights_are(tmp_path: Path) -> None:
    shard = write_manifest(tmp_path)
    decoder(autoencoder=AUTOENCODER | {"source": "there", "dtype": "fp32"}).check([shard, shard], SIZE)


def test_every_difference_is_named_at_once(tmp_path: Path) -> None:
    shard = write_manifest(tmp_path, crop="random crop")
    with pytest.raises(ValueError, match=r"latents\.json do not fit this run") as caught:
        decoder(
            autoencoder=AUTOENCODER | {"name": "sd", "scale": 0.18215}, text_encoder=TEXT | {"width": 64}
        ).check([shard], (96, 96))
    sentence = str(caught.value)
    for part in (
        "autoencoder.name=sd (the cache has taesd)",
        "autoencoder.scale=0.18215 (the cache has 1.0)",
        "data.resolution=[96, 96] (the cache has [64, 96])",
        "text_encoder.width=64 (the cache has 2)",
        "the crop=shorter side resized, centre cropped (the cache has random crop)",
        "data.decoder.text=false leaves the cached text features unread",
    ):
        assert part in sentence
    for part in ("latent_channels", "source", "length", "\n"):
        assert part not in sentence


def test_text_matters_only_where_it_is_read(tmp_path: Path) -> None:
    other = TEXT | {"width": 64}
    decoder(text_encoder=other, text=False).check([write_manifest(tmp_path)], SIZE)
    decoder(text_encoder=other).check([write_manifest(tmp_path, text_encoder=None)], SIZE)
    with pytest.raises(ValueError, match=r"text_encoder=null \(the cache has Text\)"):
        decoder(text_encoder=None).check([write_manifest(tmp_path)], SIZE)


def test_other_weights_under_the_same_settings_are_refused(tmp_path: Path) -> None:
    shard = write_manifest(tmp_path)
    same = {name: weights | {"place": "elsewhere"} for name, weights in MANIFEST.weights.items()}
    decoder(weights=same).check([shard], SIZE)
    other = {"autoencoder": {"sha256": "b" * 64, "place": "autoencoder.source=/other"}}
    with pytest.raises(ValueError, match="do not fit this run") as caught:
        decoder(weights=same | other).check([shard], SIZE)
    assert str(caught.value) == (
        f"the latents of {tmp_path}/latents.json do not fit this run: autoencoder.source=/other has the weights "
        "bbbbbbbbbbbb (the cache has aaaaaaaaaaaa, of autoencoder.source=here); set what the cache has, or encode "
        "again with rfdit encode"
    )
    text = same | {"text_encoder": {"sha256": "d" * 64, "place": "text_encoder.source=/other"}}
    with pytest.raises(
        ValueError, match=r"text_encoder\.source=/other has the weights d{12} .*decoder\.text=false"
    ):
        decoder(weights=text).check([shard], SIZE)
    decoder(weights=text, text=False).check([shard], SIZE)


def test_a_pair_has_its_noise() -> None:
    latents = pack(torch.ones(4, 8, 12), None, dtype="fp32", noise=(2**63 - 1, 5))
    pair = decoder()({"__key__": "7", "safetensors": latents}, SIZE)
    assert collate([pair], torch.arange(1)).noise.tolist() == [[2**63 - 1, 5]]
    assert collate([decoder()(raw(), SIZE)], torch.arange(1)).noise is None


def test_pairs_of_other_maps_are_not_mixed(tmp_path: Path) -> None:
    recorded = {"sampler": {"steps": 25}, "weights": "ema"}
    shards = [
        write_manifest(tmp_path / name, recorded=about)
        for name, about in (("a", recorded), ("b", recorded), ("c", recorded | {"sampler": {"steps": 50}}))
    ]
    for shard in shards:
        Path(shard).touch()
    decoder().check(shards[:2], SIZE)
    with pytest.raises(ValueError, match="were not made in the same way") as caught:
        decoder().check(shards, SIZE)
    assert str(caught.value) == (
        f"data.shards: the latents of {tmp_path}/c/latents.json and {tmp_path}/a/latents.json were not made in "
        "the same way: recorded.sampler.steps=50 (there 25); train on one of them, or record both with the same model "
        "and sampler"
    )


def test_a_cache_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    shards = {f"{i:03d}": f"/images/{i:03d}.tar" for i in range(4)}
    given = [write_manifest(tmp_path, shards=shards), str(tmp_path / "002.tar")]
    for shard in given:
        Path(shard).touch()
    with pytest.raises(ValueError, match="are not finished") as caught:
        decoder().check(given, SIZE)
    assert str(caught.value) == (
        f"the latents of {tmp_path}/latents.json are not finished: 2 of 4 shards exist; finish them with "
        "`cd /x && rfdit encode`, or train on what there is with data.decoder.partial=true"
    )
    decoder(partial=True).check(given, SIZE)
    for name in shards:
        (tmp_path / f"{name}.tar").touch()
    decoder().check(given[:1], SIZE)  # some of a whole cache


def test_a_cache_elsewhere_is_asked_for_its_shards() -> None:
    files = fsspec.filesystem("memory")
    both = dataclasses.replace(MANIFEST, shards={"000": "0.tar", "001": "1.tar"})
    with files.open("/half/latents.json", "wb") as file:
        file.write(both.to_json())
    with pytest.raises(ValueError, match="1 of 2 shards exist"):
        decoder().check(["memory://half/000.tar"], SIZE)
    files.touch("/half/001.tar")
    decoder().check(["memory://half/000.tar"], SIZE)


def test_every_folder_is_asked(tmp_path: Path) -> None:
    shards = [write_manifest(tmp_path / "a"), write_manifest(tmp_path / "b", resolution=[32, 32])]
    with pytest.raises(ValueError, match=r"b/latents\.json do not fit"):
        decoder().check(shards, SIZE)


def test_a_manifest_at_a_url_or_where_it_is_said_to_be(tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    with files.open("/cache/latents.json", "wb") as file:
        file.write(MANIFEST.to_json())
    decoder().check(["memory://cache/000.tar"], SIZE)
    write_manifest(tmp_path)
    decoder(manifest=str(tmp_path / "latents.json")).check(["pipe:cat 000.tar"], SIZE)
    with pytest.raises(
        ValueError, match=r"pipe:cat 000\.tar does not say where .* set data\.decoder\.manifest"
    ):
        decoder().check(["pipe:cat 000.tar"], SIZE)


def test_folders_that_are_not_a_cache(tmp_path: Path) -> None:
    shard, place = str(tmp_path / "000.tar"), tmp_path / "latents.json"
    with pytest.raises(ValueError, match=r"latents\.json does not exist; cached latents are shards and"):
        decoder().check([shard], SIZE)
    for data in (b"[]", b"{", b"{}", MANIFEST.to_json().replace(b'"scale": 1.0', b'"scale": 2.0')):
        place.write_bytes(data)
        with pytest.raises(ValueError, match=r"latents\.json is damaged or was edited"):
            decoder().check([shard], SIZE)
    place.write_bytes(checked_json({"format": FORMAT, "shards": {}}))
    with pytest.raises(ValueError, match=r"latents\.json is not a manifest of cached latents"):
        decoder().check([shard], SIZE)
    place.write_bytes(checked_json({"format": 99}))
    with pytest.raises(ValueError, match=f"has format 99, and this rfdit reads format {FORMAT}"):
        decoder().check([shard], SIZE)


def test_a_manifest_survives_its_file(tmp_path: Path) -> None:
    write_manifest(tmp_path)
    assert read_manifest(str(tmp_path / "latents.json")) == MANIFEST


def test_settings_reach_the_decoder_as_they_are() -> None:
    """Hydra would build the encoders, whose settings are all that is needed."""
    from omegaconf import OmegaConf

    from rfdit.config.build import CONFIG_DIR

    node = OmegaConf.load(CONFIG_DIR / "data/latents.yaml").decoder
    cfg = OmegaConf.create({"decoder": node, "autoencoder": AUTOENCODER, "text_encoder": TEXT})
    built = build(OmegaConf.to_container(cfg, resolve=True)["decoder"])
    assert built == decoder()


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("weights", ([1], {"autoencoder": "a"}, {"autoencoder": {"sha256": 3, "place": "x"}})),
        ("resolution", ([64.5, 96], [True, 96], [64], "64", math.nan)),
        ("shards", ([], {"000": 5})),
        ("arithmetic", ({"autoencoder": math.inf}, 3)),
        ("autoencoder", ([], "taesd", None)),
        ("text_encoder", ("clip", 1)),
        ("command", (["rm"], None)),
    ],
)
def test_a_manifest_of_other_types_is_none(field: str, values: tuple[object, ...], tmp_path: Path) -> None:
    """With the right checksum, as anyone can compute it."""
    for value in values:
        (tmp_path / "latents.json").write_bytes(checked_json(dataclasses.asdict(MANIFEST) | {field: value}))
        with pytest.raises(ValueError, match=r"latents\.json is not a manifest of cached latents"):
            decoder().check([str(tmp_path / "000.tar")], SIZE)
