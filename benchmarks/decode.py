"""Times decoders of JPEGs on the way from bytes to the resized picture that training sees.

    python benchmarks/decode.py SHARDS --resolution 256
    pip install --target jpeg simplejpeg PyTurboJPEG && PYTHONPATH=jpeg python benchmarks/decode.py ...

All decode the same pictures of the tar shards in one thread and in turns, and share what comes after
decoding: Pillow's antialiased resize and centre crop. Medians are printed, with the ratio to what
`rfdit.data.decode` does (Pillow, which lets the JPEG library reduce the picture while it decodes, to at
least twice the wanted size). The others leave out the EXIF tag and the limit on pixels that it
looks at, so they are shown at their best. They reduce to the same margin, in finer steps where they can.

Then, how far each one's picture is from Pillow's without any reduction, and what each makes of JPEGs
that are grey, CMYK, or damaged: a decoder that returns a picture for a damaged file lets it into training.
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
    """What comes after decoding, as in rfdit."""
    picture = ImageOps.fit(image.convert("RGB"), (side, side), method=Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


def pillow(data: bytes, side: int) -> np.ndarray:
    """Every pixel decoded."""
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
    """Those that there are here; the others are told."""
    found: dict[str, Decode] = {BASELINE: pillow_draft, "Pillow, all pixels": pillow}
    found["torchvision"] = torchvision_decode
    for name, make in (("simplejpeg", simplejpeg_decoder), ("PyTurboJPEG", turbojpeg_decoder)):
        try:
            found[name] = make()
        except (ImportError, OSError, RuntimeError) as error:
            print(f"{name} is left out: {str(error).splitlines()[0]}")
    return found


def jpegs(shards: list[str], count: int) -> list[bytes]:
    """The first pictures of the shards."""

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


def seconds(decode: Decode, pictures: list[bytes], side: int) -> float:
    start = time.perf_counter()
    for data in pictures:
        decode(data, side)
    return (time.perf_counter() - start) / len(pictures)


def compare(contenders: dict[str, Decode], pictures: list[bytes], side: int, *, repeats: int) -> None:
    """Prints milliseconds per picture, and how far each is from Pillow's full decoding."""
    exact = [pillow(data, side).astype(int) for data in pictures]
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, decode in contenders.items():
            took = seconds(decode, pictures, side)
            if repeat:  # the first is for the caches
                times[name].append(took)
    # Of each round, since what else runs here slows all of a round.
    rounds = {name: [base / own for base, own in zip(times[BASELINE], times[name])] for name in times}
    print(f"\n{len(pictures)} pictures to {side}x{side}, median of {repeats} rounds")
    print(f"{'':22s} {'ms':>7s} {'fastest':>8s} {'speed-up':>9s} {'mean diff':>10s} {'max diff':>9s}")
    for name, decode in contenders.items():
        apart = [np.abs(decode(data, side) - full) for data, full in zip(pictures, exact)]
        print(
            f"{name:22s} {1e3 * statistics.median(times[name]):7.2f} {1e3 * min(times[name]):8.2f} "
            f"{statistics.median(rounds[name]):9.2f} {np.mean([a.mean() for a in apart]):10.2f} "
            f"{max(int(a.max()) for a in apart):9d}"
        )


def unusual(picture: bytes) -> dict[str, bytes]:
    """The picture in the forms that a crawl of the web has."""

    def encoded(mode: str, **options: object) -> bytes:
        data = io.BytesIO()
        Image.open(io.BytesIO(picture)).convert(mode).save(data, "jpeg", quality=90, **options)
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
        "no JPEG": b"<html>not found</html>",
        "nothing": b"",
    }


def show_unusual(contenders: dict[str, Decode], picture: bytes, side: int) -> None:
    """Prints what each decoder makes of each form: an error, or how far the picture is from the right one."""
    forms = unusual(picture)
    for form, data in forms.items():
        print(f"\n{form}")
        right = pillow(forms["grey" if form == "grey" else "as it is"], side).astype(int)
        for name, decode in contenders.items():
            try:
                made = f"a picture, {np.abs(decode(data, side) - right).mean():.1f} from the right one"
            except Exception as error:  # whatever they raise is what is shown
                made = f"{type(error).__name__}: {str(error)[:100]}"
            print(f"  {name:22s} {made}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", help="a pattern, as for data.shards")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--pictures", type=int, default=128, help="how many, from the first shards")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument(
        "--unusual", action="store_true", help="what becomes of grey, CMYK and damaged files, instead"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    pictures = jpegs(expand_shards(args.shards), args.pictures)
    if args.unusual:
        show_unusual(decoders(), pictures[0], args.resolution)
    else:
        compare(decoders(), pictures, args.resolution, repeats=args.repeats)


if __name__ == "__main__":
    main()
