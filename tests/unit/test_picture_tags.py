"""Tags of TIFF files are read as Pillow reads them, or refused where Pillow reads them wrongly."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import pytest

from flowedge.runtime.frames.decoders import DamagedError, RefusedError, decode
from support.picture_files import Tag, grey_tags, pil_pixels, tiff, tiff_of

HEIGHT, WIDTH = 5, 12
GREY = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8).tobytes()
RGBA = np.random.default_rng(1).integers(0, 256, (4, HEIGHT, WIDTH), dtype=np.uint8)


def with_type(tags: Sequence[Tag], tag: int, kind: int) -> list[Tag]:
    return [(number, kind if number == tag else old, values) for number, old, values in tags]


def test_a_tag_of_a_type_that_pillow_takes_for_text_is_refused() -> None:
    tags = [*grey_tags(HEIGHT, WIDTH), (266, 3, [1]), (274, 3, [6]), (284, 3, [1]), (317, 3, [1])]
    assert np.array_equal(decode(tiff(tags, [GREY])), pil_pixels(tiff(tags, [GREY])))
    for tag, _, _ in tags:
        with pytest.raises(DamagedError, match=str(tag)):
            decode(tiff(with_type(tags, tag, 1), [GREY]))


@pytest.mark.parametrize("value", ['tiff:Orientation="6"', "<tiff:Orientation>3</tiff:Orientation>"])
@pytest.mark.parametrize("order", "<>")
def test_the_orientation_of_an_xmp_packet_is_applied_as_pillow_does(value: str, order: str) -> None:
    packet: Tag = (700, 1, f"<x:xmpmeta> {value} </x:xmpmeta>".encode())
    file = tiff([*grey_tags(HEIGHT, WIDTH), packet], [GREY], order=order)
    turned = pil_pixels(file)
    assert not np.array_equal(turned, pil_pixels(tiff(grey_tags(HEIGHT, WIDTH), [GREY], order=order)))
    assert np.array_equal(decode(file), turned)
    with_tag = tiff([*grey_tags(HEIGHT, WIDTH), packet, (274, 3, [8])], [GREY], order=order)
    assert np.array_equal(decode(with_tag), pil_pixels(with_tag))


def test_an_xmp_packet_without_an_orientation_turns_nothing() -> None:
    for text in (b"no orientation", b'tiff:Orientation="9"', b""):
        file = tiff([*grey_tags(HEIGHT, WIDTH), (700, 1, text)], [GREY])
        assert np.array_equal(decode(file), pil_pixels(file))
    with pytest.raises(DamagedError, match="700"):
        decode(tiff([*grey_tags(HEIGHT, WIDTH), (700, 3, [1, 2])], [GREY]))


def test_a_predictor_counts_in_no_other_compression_than_lzw_and_deflate() -> None:
    for compression, piece in ((1, GREY), (32773, bytes([len(GREY) - 1]) + GREY)):
        file = tiff(grey_tags(HEIGHT, WIDTH, t317=2, t259=compression), [piece])
        assert np.array_equal(decode(file), pil_pixels(file))


@pytest.mark.parametrize(("photometric", "bits"), [(0, 8), (0, 1), (1, 4), (1, 1), (1, 16)])
def test_one_channel_in_planes_is_refused_where_pillow_takes_it_otherwise(
    photometric: int, bits: int
) -> None:
    with pytest.raises(RefusedError, match="planes"):
        decode(tiff(grey_tags(HEIGHT, WIDTH, t262=photometric, t258=bits, t284=2), [GREY * 2]))
    plain = tiff(grey_tags(HEIGHT, WIDTH, t284=2), [GREY])
    assert np.array_equal(decode(plain), pil_pixels(plain))


def test_a_fourth_plane_without_a_name_is_refused() -> None:
    tags = [*grey_tags(HEIGHT, WIDTH, t262=2, t277=4, t284=2), (338, 3, [2])]
    planes = [plane.tobytes() for plane in RGBA]
    assert np.array_equal(decode(tiff(tags, planes)), pil_pixels(tiff(tags, planes)))
    with pytest.raises(RefusedError, match="4 channels"):
        decode(tiff(tags[:-1], planes))


def test_a_windows_media_photo_in_a_tiff_is_refused() -> None:
    with pytest.raises(RefusedError, match="Media Photo"):
        decode(tiff([*grey_tags(HEIGHT, WIDTH), (0xBC01, 3, [1])], [GREY]))


def test_a_palette_without_a_depth_is_refused() -> None:
    tags = [*grey_tags(HEIGHT, WIDTH, t262=3, t258=1), (320, 3, [0, 65535] * 3)]
    rows = bytes(2 * HEIGHT)
    assert np.array_equal(decode(tiff(tags, [rows])), pil_pixels(tiff(tags, [rows])))
    with pytest.raises(DamagedError, match="palette"):
        decode(tiff([tag for tag in tags if tag[0] != 258], [rows]))


@pytest.mark.parametrize("tag", [273, 279, 258, 320])
def test_a_tag_of_millions_of_values_is_refused_before_they_are_read(tag: int) -> None:
    count = (1 << 20) + 1
    tags = [one for one in grey_tags(HEIGHT, WIDTH) if one[0] != tag]
    file = bytearray(tiff_of([*tags, (tag, 4, [0])], bytes(4 * count)))
    entry = file.find(struct.pack("<HHI", tag, 4, 1), 4 * count)
    struct.pack_into("<II", file, entry + 4, count, 8)
    with pytest.raises(RefusedError, match=f"{tag}.*{count}"):
        decode(bytes(file))


@pytest.mark.parametrize("tag", [324, 325])
def test_a_file_that_lists_strips_and_tiles_is_refused(tag: int) -> None:
    file = tiff([*grey_tags(HEIGHT, WIDTH), (tag, 4, [24])], [GREY])
    with pytest.raises(DamagedError, match="both strips and tiles"):
        decode(file)


@pytest.mark.parametrize("tag", [322, 323])
def test_strips_with_one_side_of_a_tile_are_refused(tag: int) -> None:
    file = tiff([*grey_tags(HEIGHT, WIDTH), (tag, 3, [1])], [GREY])
    with pytest.raises(DamagedError):
        decode(file)
