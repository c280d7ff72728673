"""What a file says of its values is honoured: bits, white, polarity, profiles; else the set's."""

import io
import json
import struct
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from layouts import scanned
from pictures import MAX_SAMPLE, SAMPLE_FORMAT, packed, png, tiff
from PIL import Image, ImageCms

from spg_pipe.datasets.manifest import Manifest
from spg_pipe.errors import SpgError
from spg_pipe.images.decoding import UnusableFileError
from spg_pipe.images.notes import look_at, peak_of
from spg_pipe.images.reading import read_header, read_image, read_mask
from spg_pipe.images.samples import tone_curve, white_of

RAMP = np.linspace(0, 1, 35).reshape(5, 7)
"""Grey of an odd width."""


def of(top: int) -> np.ndarray:
    return np.round(RAMP * top).astype(np.uint16)


def colour(top: int) -> np.ndarray:
    return np.dstack([of(top), of(top)[::-1], of(top)])


def reversed_bits(data: bytes) -> bytes:
    return np.packbits(np.unpackbits(np.frombuffer(data, np.uint8)), bitorder="little").tobytes()


SHAPE, RGB_SHAPE = RAMP.shape, (*RAMP.shape, 3)
FILES = {
    **{
        f"{bits} bits packed, {order}": tiff(
            packed(of(2**bits - 1), bits), SHAPE, bits=bits, order=order
        )
        for bits in (10, 12, 14)
        for order in "<>"
    },
    "12 bits, lowest bit first": tiff(
        reversed_bits(packed(of(4095), 12)), SHAPE, bits=12, extra=[(266, 3, 2)]
    ),
    "12 bits, white is 0": tiff(packed(of(4095)[::-1, ::-1], 12), SHAPE, bits=12, photometric=0),
    **{
        f"{kind} {photometric}, {order}": tiff(
            (RAMP if photometric else 1 - RAMP).astype(order + kind).tobytes(),
            SHAPE,
            bits=32,
            photometric=photometric,
            order=order,
            extra=[(SAMPLE_FORMAT, 3, 3)],
        )
        for kind in ("f4",)
        for photometric in (0, 1)
        for order in "<>"
    },
    **{
        f"16 bits, {photometric}, {order}": tiff(
            (of(65535) if photometric else 65535 - of(65535)).astype(order + "u2").tobytes(),
            SHAPE,
            bits=16,
            photometric=photometric,
            order=order,
        )
        for photometric in (0, 1)
        for order in "<>"
    },
    "8 bits, white is 0": tiff((255 - of(255)).astype(np.uint8).tobytes(), SHAPE, photometric=0),
    **{
        f"white stated at {top}": tiff(
            of(top).tobytes(), SHAPE, bits=16, extra=[(MAX_SAMPLE, 3, top)]
        )
        for top in (1023, 4095, 16383)
    },
    "white stated, and 0": tiff(
        (4095 - of(4095)).tobytes(), SHAPE, bits=16, photometric=0, extra=[(MAX_SAMPLE, 3, 4095)]
    ),
    "white stated of colour": tiff(
        colour(4095).tobytes(), RGB_SHAPE, bits=16, photometric=2, extra=[(MAX_SAMPLE, 3, 4095)]
    ),
    "signed": tiff(of(32767).tobytes(), SHAPE, bits=16, extra=[(SAMPLE_FORMAT, 3, 2)]),
    "a maximum that is none": tiff(
        of(65535).tobytes(), SHAPE, bits=16, extra=[(MAX_SAMPLE, 3, 4095)]
    ),
    "a statistic": tiff(of(65535).tobytes(), SHAPE, bits=16, extra=[(MAX_SAMPLE, 3, 65000)]),
    "lower bits of a PNG": png(of(4095), (b"sBIT", b"\x0c")),
    "upper bits of a PNG": png(of(4095) << 4, (b"sBIT", b"\x0c")),
    "bits of a colour PNG": png(colour(4095), (b"sBIT", b"\x0c\x0c\x0c")),
    "grey and opacity": png(np.dstack([of(4095), of(65535)[::-1]]), (b"sBIT", b"\x0c\x0c")),
    **{
        f"PGM to {top}": b"P5 7 5 %d\n" % top + of(top).astype(">u2").tobytes()
        for top in (1023, 4095, 65535)
    },
    "plain PGM": b"P2 7 5 1023\n" + " ".join(map(str, of(1023).ravel())).encode(),
    "PGM of few levels": b"P5 7 5 100\n" + of(100).astype(np.uint8).tobytes(),
}


@pytest.mark.parametrize("case", FILES)
def test_what_a_file_says_of_its_values_is_honoured(tmp_path, case):
    path = tmp_path / "image.png"
    path.write_bytes(FILES[case])
    image = read_image(path, exif=False)
    grey = image[:, :, 0] / np.iinfo(image.dtype).max
    assert np.abs(grey - RAMP).max() < 0.006, grey
    assert white_of(peak_of(look_at([("image", path)], exif=False))) is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff(packed(of(1023), 10), SHAPE, bits=10, compression=5), "10 bits .*compression 5"),
        (
            tiff(RAMP.astype("<f2").tobytes(), SHAPE, bits=16, extra=[(SAMPLE_FORMAT, 3, 3)]),
            "floating-point samples of 16 bits",
        ),
        (
            tiff((of(255) - 128).astype("u1").tobytes(), SHAPE, extra=[(SAMPLE_FORMAT, 3, 2)]),
            "signed samples of 8 bits",
        ),
        (
            tiff(colour(65535).tobytes(), RGB_SHAPE, bits=16, photometric=2, extra=[(284, 3, 2)]),
            "samples of 16 bits in separate planes",
        ),
    ],
)
def test_samples_that_are_not_decoded_are_refused_with_the_way_out(tmp_path, content, reason):
    path = tmp_path / "odd.tif"
    path.write_bytes(content)
    message = rf"odd\.tif cannot be read \(a TIFF with {reason}.*`magick in\.tif out"
    with pytest.raises(UnusableFileError, match=message):
        read_image(path, exif=False)


@pytest.mark.parametrize("side", [256, 257])
def test_a_picture_of_negative_size_is_refused(tmp_path, side):
    """Found by guided fuzzing."""
    content = bytearray(tiff(packed(of(4095), 12), SHAPE, bits=12))
    entry = content.index(struct.pack("<HHI", side, 4, 1))
    content[entry : entry + 12] = struct.pack("<HHIi", side, 9, 1, -128)
    (tmp_path / "odd.tif").write_bytes(content)
    with pytest.raises(UnusableFileError, match=r"odd\.tif cannot be read \(a TIFF of .*-128"):
        read_header(tmp_path / "odd.tif", "image", exif=False)


@pytest.mark.parametrize(
    ("peak", "white"),
    [
        (None, None),
        (0, None),
        (1, 255),
        (255, 255),
        (256, 1023),
        (1023, 1023),
        (3900, 4095),
        (4096, 16383),
        (16384, None),
        (65535, None),
    ],
)
def test_white_of_a_set_is_the_least_depth_that_its_values_fit(peak, white):
    assert white_of(peak) == white


def write_set(folder: Path, tops: list[float], as_colour: bool = False) -> Path:
    folder.mkdir(parents=True)
    for number, top in enumerate(tops):
        values = colour(int(top)) if as_colour else of(int(top))
        (folder / f"{number}.png").write_bytes(png(values))
    return folder


@pytest.mark.parametrize("as_colour", [False, True])
def test_where_files_do_not_say_it_the_highest_value_of_the_set_decides(tmp_path, as_colour):
    root = write_set(tmp_path / "parts", [900, 3900], as_colour)
    Image.fromarray(of(255).astype(np.uint8)).save(root / "eight.png")  # says it
    manifest = scanned("parts", "folder", root)
    assert manifest.white == 4095
    (note,) = (note for note in manifest.notes if "white" in note)
    assert note.startswith("2 16-bit images not saying which value is white: by the highest of all")
    assert "3900, it is 4095, of 12 bits; if that is wrong, save them with white at 65535" in note
    files = [(path, root / path) for path in manifest.table["path"]]
    assert peak_of(look_at(files, exif=True)) == 3900  # as `predict` does
    dark = read_image(root / "0.png", exif=False, white=manifest.white)
    assert dark.max() / np.iinfo(dark.dtype).max == pytest.approx(900 / 4095, abs=0.005)


@pytest.mark.parametrize(
    "content",
    [
        tiff(of(3000).tobytes(), SHAPE, bits=16, extra=[(MAX_SAMPLE, 3, 65535)]),
        png(of(3000), (b"sBIT", b"\x10")),
    ],
)
def test_a_dark_picture_that_states_its_whole_range_stays_dark(tmp_path, content):
    path = tmp_path / "dark.png"
    path.write_bytes(content)
    assert peak_of(look_at([("dark", path)], exif=False)) == 0
    assert read_image(path, exif=False, white=4095).max() == 3000


def test_a_picture_that_is_brighter_than_white_is_refused_and_not_clipped(tmp_path):
    path = tmp_path / "bright.png"
    path.write_bytes(png(of(5000)))
    assert read_image(path, exif=False, white=5000).max() == 65535
    with pytest.raises(
        SpgError, match=r"from \d+ to 5000, of unknown scale; expected are 0 to 4095"
    ):
        read_image(path, exif=False, white=4095)


def test_every_part_of_a_dataset_is_read_alike(tmp_path):
    # A glare in one test image, and a darker category: white is of them all.
    for part, top in {"a/train/good": 4000, "a/test/good": 5000, "b/train/good": 900}.items():
        write_set(tmp_path / "set" / part, [top])
    parts: list[dict[str, object]] = [{"split": "train"}, {"split": "test"}, {"split": "all"}]
    parts += [{"split": "train", "categories": ("b",)}]
    whites = [scanned("set", "mvtec", tmp_path / "set", **part).white for part in parts]
    assert whites == [16383] * 4


def test_a_single_image_is_noted_as_such_and_a_full_range_is_not(tmp_path):
    alone = scanned("one", "folder", write_set(tmp_path / "one", [3900]))
    assert "one image says little of its camera" in "".join(alone.notes)
    full = scanned("full", "folder", write_set(tmp_path / "full", [900, 60000]))
    assert (full.white, [note for note in full.notes if "white" in note]) == (None, [])


def test_white_of_the_set_is_in_the_record_only_where_it_applies(tmp_path):
    saved = {}
    for name, tops in {"plain": [60000], "dark": [3900]}.items():
        manifest = scanned(name, "folder", write_set(tmp_path / name / "parts", tops))
        manifest.save(tmp_path / f"{name}.parquet")
        assert Manifest.load(tmp_path / f"{name}.parquet", manifest.root).white == manifest.white
        metadata = pq.read_schema(tmp_path / f"{name}.parquet").metadata
        saved[name] = json.loads(metadata[b"spg"])
    assert "white" not in saved["plain"]
    assert saved["dark"]["white"] == 4095


def linear_grey_profile() -> bytes:
    """An ICC profile of linear light, made from LittleCMS's sRGB by exchanging its curves."""
    srgb = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for index in range(int.from_bytes(srgb[128:132])):
        entry = 132 + 12 * index
        start, length = (int.from_bytes(srgb[entry + a : entry + a + 4]) for a in (4, 8))
        if bytes(srgb[entry : entry + 4]) in (b"rTRC", b"gTRC", b"bTRC"):
            srgb[start : start + length] = b"curv".ljust(length, b"\0")  # no points: linear
    return bytes(srgb)


def test_a_colour_profile_of_other_greys_is_honoured_and_noted(tmp_path):
    levels = Image.fromarray(np.full((4, 4), 55, np.uint8))  # a linear 0.216 is sRGB's 128
    levels.save(tmp_path / "linear.png", icc_profile=linear_grey_profile())
    wide = Image.fromarray(np.full((4, 4), 55 * 257, np.uint16))
    wide.save(tmp_path / "wide.png", icc_profile=linear_grey_profile())
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    levels.save(tmp_path / "srgb.png", icc_profile=srgb)
    levels.save(tmp_path / "damaged.png", icc_profile=b"no profile")
    read = {path.name: int(read_image(path, exif=False).max()) for path in tmp_path.glob("*.png")}
    assert read["linear.png"] == pytest.approx(128, abs=2)
    assert read["wide.png"] == pytest.approx(128 * 257, abs=600)
    assert read["srgb.png"] == read["damaged.png"] == 55
    assert tone_curve(srgb) is None
    notes = "\n".join(scanned("parts", "folder", tmp_path).notes)
    assert "2 images with a colour profile of other greys than sRGB's" in notes
    assert read_mask(tmp_path / "linear.png", exif=False).all()  # masks are not colours


def test_a_jpeg_of_a_linear_profile_is_read_alike(tmp_path):
    buffer = io.BytesIO()
    grey = Image.new("RGB", (8, 8), (55, 55, 55))
    grey.save(buffer, "JPEG", quality=100, icc_profile=linear_grey_profile())
    (tmp_path / "x.jpg").write_bytes(buffer.getvalue())
    assert np.abs(read_image(tmp_path / "x.jpg", exif=True).astype(int) - 128).max() <= 3


LABELS = (RAMP > 0.5).astype(np.uint16)  # 1 of 65535 is a defect
MASKS = {
    "grey": png(LABELS),
    "grey and opacity": png(np.dstack([LABELS, of(0) + 65535])),
    "colour": png(np.dstack([LABELS, of(0), of(0)])),
    "16 bits, white is 0": tiff((65535 - LABELS).tobytes(), SHAPE, bits=16, photometric=0),
    "12 bits, white is 0": tiff(packed(4095 - LABELS, 12), SHAPE, bits=12, photometric=0),
}


@pytest.mark.parametrize("case", MASKS)
def test_a_mask_beyond_8_bits_counts_every_value_above_black(tmp_path, case):
    path = tmp_path / "mask.png"
    path.write_bytes(MASKS[case])
    np.testing.assert_array_equal(read_mask(path, exif=False), LABELS)
