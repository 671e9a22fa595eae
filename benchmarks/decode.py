"""Time JPEG decoders from the encoded bytes to the resized image that training sees.

    python benchmarks/decode.py SHARDS --resolution 256
    pip install --target jpeg simplejpeg PyTurboJPEG && PYTHONPATH=jpeg python benchmarks/decode.py ...

All decode the same images of the tar shards, in one thread and in turns, and share Pillow's antialiased resize
and centre crop afterwards. Medians are printed, with the ratio to `rfdit.data.decode` (Pillow's draft mode, in
which the JPEG library downscales while it decodes, to at least twice the requested size). The others skip the
EXIF tag and the limit on pixels, which rfdit checks, so they are shown at their best. They downscale to the same
margin, in finer steps where they can.

The table also has the difference of each result from that of Pillow without downscaling. `--unusual` shows the
results for JPEGs that are grey, CMYK or damaged: a decoder that returns an image for a damaged file lets it into
training.
"""

import argparse
import io
import statistics
import tarfile
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torchvision
from PIL import Image, ImageOps

from rfdit.data.decode import DRAFT_MARGIN, decode_image
from rfdit.data.shards import expand_shards

BASELINE = "Pillow draft (rfdit)"
Decode = Callable[[bytes, int], np.ndarray]  # (encoded, side) -> (side, side, 3)


def fitted(image: Image.Image, side: int) -> np.ndarray:
    """Resize and crop a decoded image, as rfdit does."""
    cropped = ImageOps.fit(image.convert("RGB"), (side, side), method=Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(cropped).transpose(2, 0, 1))


def pillow(data: bytes, side: int) -> np.ndarray:
    """Pillow without downscaling while decoding."""
    with Image.open(io.BytesIO(data)) as image:
        return fitted(image, side)


def pillow_draft(data: bytes, side: int) -> np.ndarray:
    return decode_image(data, (side, side)).numpy()


def torchvision_decode(data: bytes, side: int) -> np.ndarray:
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    pixels = torchvision.io.decode_jpeg(encoded, mode=torchvision.io.ImageReadMode.RGB)
    return fitted(Image.fromarray(pixels.permute(1, 2, 0).numpy()), side)


def simplejpeg_decoder() -> Decode:
    import simplejpeg

    def decode(data: bytes, side: int) -> np.ndarray:
        least = DRAFT_MARGIN * side
        pixels = simplejpeg.decode_jpeg(data, min_height=least, min_width=least)
        return fitted(Image.fromarray(pixels), side)

    return decode


def turbojpeg_decoder() -> Decode:
    import turbojpeg

    library = turbojpeg.TurboJPEG()
    scales = sorted(library.scaling_factors, key=lambda scale: scale[0] / scale[1])

    def decode(data: bytes, side: int) -> np.ndarray:
        width, height = library.decode_header(data)[:2]
        enough = (
            s for s in scales if min(width, height) * s[0] >= DRAFT_MARGIN * side * s[1] and s[0] <= s[1]
        )
        pixels = library.decode(data, pixel_format=turbojpeg.TJPF_RGB, scaling_factor=next(enough, None))
        return fitted(Image.fromarray(pixels), side)

    return decode


def decoders() -> dict[str, Decode]:
    """The installed decoders by name; prints which are left out."""
    found: dict[str, Decode] = {BASELINE: pillow_draft, "Pillow, all pixels": pillow}
    found["torchvision"] = torchvision_decode
    for name, make in (("simplejpeg", simplejpeg_decoder), ("PyTurboJPEG", turbojpeg_decoder)):
        try:
            found[name] = make()
        except (ImportError, OSError, RuntimeError) as error:
            print(f"{name} is left out: {str(error).splitlines()[0]}")
    return found


def jpegs(shards: list[str], count: int) -> list[bytes]:
    """The first `count` JPEGs of the shards."""

    def read() -> Iterator[bytes]:
        for shard in shards:
            with tarfile.open(shard) as tar:
                for member in tar:
                    file = tar.extractfile(member)
                    if file is not None and member.name.lower().endswith((".jpg", ".jpeg")):
                        yield file.read()

    found = [data for data, _ in zip(read(), range(count))]
    if not found:
        raise SystemExit(
            f"there are no .jpg files in the {len(shards)} shards, the first of them {shards[0]}"
        )
    return found


def seconds(decode: Decode, images: list[bytes], side: int) -> float:
    start = time.perf_counter()
    for data in images:
        decode(data, side)
    return (time.perf_counter() - start) / len(images)


def compare(contenders: dict[str, Decode], images: list[bytes], side: int, *, repeats: int) -> None:
    """Print the milliseconds per image, and the difference of each decoder from Pillow without downscaling."""
    exact = [pillow(data, side).astype(int) for data in images]
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, decode in contenders.items():
            took = seconds(decode, images, side)
            if repeat:  # the first round only fills the caches
                times[name].append(took)
    # Ratios within each round, since other work on the machine slows a whole round.
    rounds = {name: [base / own for base, own in zip(times[BASELINE], times[name])] for name in times}
    print(f"\n{len(images)} images to {side}x{side}, median of {repeats} rounds")
    print(f"{'':22s} {'ms':>7s} {'fastest':>8s} {'speed-up':>9s} {'mean diff':>10s} {'max diff':>9s}")
    for name, decode in contenders.items():
        apart = [np.abs(decode(data, side) - full) for data, full in zip(images, exact)]
        print(
            f"{name:22s} {1e3 * statistics.median(times[name]):7.2f} {1e3 * min(times[name]):8.2f} "
            f"{statistics.median(rounds[name]):9.2f} {np.mean([a.mean() for a in apart]):10.2f} "
            f"{max(int(a.max()) for a in apart):9d}"
        )


def unusual(image: bytes) -> dict[str, bytes]:
    """The image in the forms that are found in a web crawl."""

    def encoded(mode: str, **options: object) -> bytes:
        data = io.BytesIO()
        Image.open(io.BytesIO(image)).convert(mode).save(data, "jpeg", quality=90, **options)
        return data.getvalue()

    plain, middle = encoded("RGB"), len(encoded("RGB")) // 2
    return {
        "as it is": plain,
        "progressive": encoded("RGB", progressive=True),
        "grey": encoded("L"),
        "CMYK": encoded("CMYK"),
        "half of it": plain[:middle],
        "last 2 bytes missing": plain[:-2],
        "progressive, half of it": (data := encoded("RGB", progressive=True))[: len(data) // 2],
        "zeros in the middle": plain[:middle] + bytes(200) + plain[middle + 200 :],
        "bytes behind the end": plain + b"more",
        "not a JPEG": b"<html>not found</html>",
        "nothing": b"",
    }


def show_unusual(contenders: dict[str, Decode], image: bytes, side: int) -> None:
    """Print the result of each decoder for each form: an error, or the difference from the correct image."""
    forms = unusual(image)
    for form, data in forms.items():
        print(f"\n{form}")
        correct = pillow(forms["grey" if form == "grey" else "as it is"], side).astype(int)
        for name, decode in contenders.items():
            try:
                result = f"an image, {np.abs(decode(data, side) - correct).mean():.1f} from the correct one"
            except Exception as error:  # any error is a result to show
                result = f"{type(error).__name__}: {str(error)[:100]}"
            print(f"  {name:22s} {result}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", help="file, folder or pattern, as for data.shards")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--images", type=int, default=128, help="number of images, from the first shards")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument(
        "--unusual", action="store_true", help="show the results for grey, CMYK and damaged files instead"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    images = jpegs(expand_shards(args.shards), args.images)
    if args.unusual:
        show_unusual(decoders(), images[0], args.resolution)
    else:
        compare(decoders(), images, args.resolution, repeats=args.repeats)


if __name__ == "__main__":
    main()
