"""Find the images that a user's word stands for, and report the files that are left out."""

from __future__ import annotations

import fnmatch
import functools
import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from flowedge.errors import DataError
from flowedge.files import open_regular_file

IMAGE_SUFFIXES: Final = frozenset(
    {
        *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", ".webp"),
        *(".pbm", ".pgm", ".ppm", ".pnm", ".pfm"),
    }
)
"""The ends of the names of images that are read."""

UNREAD_SUFFIXES: Final = frozenset(
    {
        *(
            ".gif",
            ".apng",
            ".mng",
            ".ico",
            ".cur",
            ".tga",
            ".pcx",
            ".dds",
            ".psd",
            ".psb",
            ".xcf",
            ".svg",
            ".pam",
        ),
        *(".jp2", ".j2k", ".jpf", ".jpx", ".jls", ".jxl", ".jxr", ".wdp", ".heic", ".heif", ".avif", ".mpo"),
        *(".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".bayer"),
        *(".exr", ".hdr", ".pic", ".ras", ".sgi", ".rgb", ".fits", ".fit", ".dcm", ".dicom", ".btf", ".tf8"),
        *(".seq", ".ptw", ".fff", ".npy"),
    }
)
"""The ends of the names of images of other formats. Such images are found, and reading them raises an error."""

PICTURES: Final = (".overlay.png", ".mask.png")
"""The ends of the names of pictures that ``flowedge run --out`` writes."""

_SIGNATURES: Final = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|II[*+]\x00|MM\x00[*+]|BM.{4}\x00{4}|RIFF....WEBP|P[1-7fF][\s#]|GIF8[79]a"
    # HEIF and AVIF, JPEG 2000 and XL, Photoshop, OpenEXR, DirectDraw
    rb"|....ftyp(?:he[iv]|mif1|msf1|avi[fs])|\0\0\0\x0c(?:jP  |JXL )\r\n\x87\n|\xffO\xffQ|8BPS\0|v/1\x01|DDS ",
    re.DOTALL,
)


class Found(NamedTuple):
    """The files that one or several words of a user stand for.

    Attributes:
        images: At least one file, in natural order: ``part2.png`` before ``part10.png``. The files that look like
            images and cannot be read are among them: a dangling link, a pipe, an image of another format, a folder
            that cannot be listed.
        others: The other files, and pictures that an earlier run wrote (`PICTURES`).
        folders: The subfolders that were not searched, since only the folders themselves were asked for.
        empty: The folders and patterns that stand for no image, beside others that do.
        repeated: The number of times that an image was found again. The image is in ``images`` once.
    """

    images: list[Path]
    others: list[Path]
    folders: list[Path] = []  # noqa: RUF012, nobody changes it
    empty: list[Path] = []  # noqa: RUF012, nobody changes it
    repeated: int = 0


def find_all_images(sources: Sequence[str | Path], *, recursive: bool = True) -> Found:
    """Find the images that several names stand for, each image once.

    The images are in the order of the names, and those of one name are in natural order. An image that two names stand
    for is taken where it is found first. Two links to one file are two images.

    Args:
        sources: Names such as `find_images` takes. Beside other names, a file that looks like no image is left out,
            since a shell puts all files of a folder in the place of an unquoted pattern.
        recursive: Search folders with their subfolders.

    Raises:
        DataError: A name leads nowhere, a folder cannot be listed, or no image is found at all.
    """
    if len(sources) == 1:
        return find_images(sources[0], recursive=recursive)
    missing = [str(one) for one in sources if not os.path.lexists(one) and not glob.has_magic(str(one))]
    if missing:
        more = f" and {len(missing) - 1} other names" if len(missing) > 1 else ""
        raise DataError(f"{missing[0]}{more} does not exist. Nothing was inspected. Check the names.")
    images: dict[tuple[str, str], Path] = {}
    others: dict[Path, None] = {}
    folders: dict[Path, None] = {}
    empty: list[Path] = []
    count = 0
    place_of = functools.cache(os.path.realpath)
    for source in sources:
        if os.path.isfile(source):
            named = [Path(source)]
            found = Found(named, []) if may_be_an_image(Path(source)) else Found([], named)
        else:
            found = _search(source, recursive=recursive)
            empty += [] if found.images else [Path(source)]
        for path in found.images:
            images.setdefault((place_of(path.parent), path.name), path)
        count += len(found.images)
        others |= dict.fromkeys(found.others)
        folders |= dict.fromkeys(found.folders)
    if not images:
        raise DataError(
            f"the {len(sources)} names stand for no image. Name images, or folders of images. A video is named alone."
        )
    return Found([*images.values()], [*others], [*folders], empty, count - len(images))


def find_images(source: str | Path, *, recursive: bool = True) -> Found:
    """Find the images that a name stands for.

    Args:
        source: An image file, a folder (searched with all its subfolders, where a link to a folder is
            reported and not followed), or a pattern with ``*``, ``?``, ``[...]`` or ``**``. Hidden files and folders
            are left out. A file that is named outright is an image whatever its name, else the end of its name or its
            first bytes tell.
        recursive: Search a folder with its subfolders.

    Raises:
        DataError: Nothing is there, or the folder itself cannot be listed.
    """
    found = _search(source, recursive=recursive)
    if found.images:
        return found
    if os.path.isdir(source):
        where = "The folder and its subfolders hold" if recursive else "The folder itself holds"
    else:
        where = "The pattern matches"
    suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
    raise DataError(f"{source} has no images. {where} {len(found.others)} files; images end in {suffixes}.")


def _search(source: str | Path, *, recursive: bool) -> Found:
    """Find the images that a name stands for, which may be none.

    Raises:
        DataError: Nothing is there, or the folder itself cannot be listed.
    """
    folders: list[Path] = []
    if os.path.isdir(source):
        try:
            with os.scandir(source) as entries:
                if not recursive:
                    folders = [Path(one) for one in entries if one.is_dir() and not one.name.startswith(".")]
        except OSError as error:
            raise DataError(f"{source} cannot be read: {error.strerror}. Check its permissions.") from error
        below = (
            files_below(Path(source)) if recursive else (Path(source, name) for name in os.listdir(source))
        )
        images, others, *_ = sort_out(path for path in below if path not in set(folders))
    elif os.path.lexists(source):
        return Found([Path(source)], [])
    elif glob.has_magic(str(source)):
        images, others, *_ = sort_out(_matching(str(source)))
    else:
        raise DataError(f"{source} does not exist. Name an image, a folder of images or a quoted pattern.")
    return Found(sorted(images, key=natural_order), others, sorted(folders, key=natural_order))


def listed_images(content: bytes) -> list[Path]:
    """Return the images of a list of names, each once and in the order of the list.

    Args:
        content: The names, one on each line, or with a zero byte behind each as ``find -print0`` writes them. Empty
            lines are left out. No name is a pattern.

    Raises:
        DataError: The list is empty.
    """
    names = content.split(b"\0") if b"\0" in content else content.splitlines()
    images: dict[tuple[str, str], Path] = {}
    place_of = functools.cache(os.path.realpath)
    for name in filter(None, names):
        path = Path(os.fsdecode(name))
        images.setdefault((place_of(path.parent), path.name), path)
    if not images:
        raise DataError("the list names no image. Write one name on each line.")
    return [*images.values()]


def sort_out(entries: Iterable[Path]) -> Found:
    """Tell images from other files. Hidden files are neither."""
    images: list[Path] = []
    others: list[Path] = []
    for path in entries:
        if path.name.startswith("."):
            continue
        (images if may_be_an_image(path) else others).append(path)
    return Found(images, others)


def may_be_an_image(path: Path) -> bool:
    """Check that a file looks like an image and is no picture of an earlier run."""
    return not path.name.endswith(PICTURES) and _looks_like_an_image(path)


def natural_order(path: Path) -> tuple[list[list[str | int]], str]:
    """Compare runs of digits as numbers. A split puts text at even places and digits at odd ones."""
    split = (re.split(r"([0-9]+)", part) for part in path.parts)
    key: list[list[str | int]] = [
        [_number(t) if n % 2 else t.casefold() for n, t in enumerate(s)] for s in split
    ]
    return key, str(path)


def _number(digits: str) -> int:
    """Return the digits' value. Python refuses to read thousands of digits, which no counter has."""
    return int(digits[-300:])


def _looks_like_an_image(path: Path) -> bool:
    """Check that a name or, for a name that does not tell, the first bytes are an image's."""
    # A folder among the entries is one that cannot be searched, which is a problem to report.
    if path.suffix.lower() in IMAGE_SUFFIXES | UNREAD_SUFFIXES or os.path.isdir(path):
        return True
    try:
        with open_regular_file(path) as file:
            return _SIGNATURES.match(file.read(16)) is not None
    except OSError:
        return False


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, and the folders that cannot be listed or are links."""
    unreadable: list[Path] = []

    def note(error: OSError) -> None:
        unreadable.append(Path(os.fsdecode(error.filename)))

    for parent, folders, names in os.walk(folder, onerror=note):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in names)
        yield from (path for name in folders if (path := Path(parent, name)).is_symlink())
    yield from unreadable


def _matching(pattern: str) -> Iterator[Path]:
    """Yield the files that a pattern matches, each once, and the folders on the way that are not searched.

    Such a folder cannot be listed, or it is a link below ``**``, which follows none so that a loop of links ends.
    """
    parts = Path(pattern).parts
    places = [Path(parts[0])] if Path(pattern).is_absolute() else [Path()]
    unreadable: dict[Path, None] = {}
    for part in parts[1:] if Path(pattern).is_absolute() else parts:
        places = list(dict.fromkeys(_step(places, part, unreadable)))
    yield from (path for path in places if not os.path.isdir(path))
    yield from unreadable


def _step(places: Sequence[Path], part: str, unreadable: dict[Path, None]) -> Iterator[Path]:
    """Yield what one part of a pattern leads to from the places that the parts before it lead to."""

    def note(error: OSError) -> None:
        if isinstance(error, PermissionError):  # a file where a folder would have to be is no problem
            unreadable[Path(os.fsdecode(error.filename))] = None

    for place in places:
        if part == "**":
            yield place
            for parent, folders, names in os.walk(place, onerror=note):
                folders[:] = [name for name in folders if not name.startswith(".")]
                links = [name for name in folders if os.path.islink(Path(parent, name))]
                unreadable |= dict.fromkeys(Path(parent, name) for name in links)
                seen = (*(name for name in folders if name not in links), *names)
                yield from (Path(parent, name) for name in seen if not name.startswith("."))
        elif not glob.has_magic(part):
            if os.path.lexists(place / part):
                yield place / part
        else:
            try:
                names = fnmatch.filter(os.listdir(place), part)
            except OSError as error:
                note(error)
                continue
            # A hidden name needs a dot in the pattern.
            yield from (place / name for name in names if part.startswith(".") or not name.startswith("."))
