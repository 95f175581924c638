"""Pictures in files: named by a digest of their content, decoded once, and kept as arrays that map into memory."""

import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdlib.data import DataError
from kdlib.store import Store, cache_root, first_line, key

KINDS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Collection:
    """Files of a data set: for each part (a split or a domain) and each class, in that order, its pictures."""

    name: str
    root: Path
    parts: dict[str, dict[str, list[Path]]]
    mend: str  # what to do about pictures that are damaged

    @property
    def files(self) -> list[Path]:
        return [file for part in self.parts.values() for files in part.values() for file in files]

    def content(self, known: tuple[str, ...] = (), reread: bool = False) -> str:
        """16 hex digits over the names and bytes of all pictures, their parts and their classes.

        It is remembered in the cache, and taken from there (unless `reread`) while no file's name, size or time of change differs.
        Where it is none of the `known` digests, all pictures are decoded first: a DataError names the damaged ones.
        """
        place = cache_root() / "data" / "digests" / f"{key([self.name, str(self.root.resolve())])}.json"
        listing = key([[str(f), (facts := f.stat()).st_size, facts.st_mtime_ns] for f in self.files])
        try:
            before = json.loads(place.read_bytes())
            remembered = before["digest"] if before["listing"] == listing else None
        except (OSError, ValueError, TypeError, KeyError):  # not there, or damaged
            remembered = None
        if remembered and not reread:
            return remembered
        digest = self._read()
        if digest not in (*known, remembered):
            self.complain([(f, problem) for f in self.files if (problem := _problem(f))])
        with suppress(OSError):  # no room: it is computed again next time
            place.parent.mkdir(parents=True, exist_ok=True)
            making = place.with_name(f"{place.name}-{uuid.uuid4().hex[:8]}")
            making.write_text(json.dumps({"listing": listing, "digest": digest}))
            os.replace(making, place)
        return digest

    def _read(self) -> str:
        total = hashlib.sha256()
        for part, classes in sorted(self.parts.items()):
            for name, files in sorted(classes.items()):
                for file in sorted(files):
                    content = file.read_bytes()
                    total.update(b"%s/%s/%s %d\n" % (*map(os.fsencode, (part, name, file.name)), len(content)) + content)
        return total.hexdigest()[:16]

    def complain(self, damaged: list[tuple[Path, str]]) -> None:
        if damaged:
            named = ", ".join(f"{file.relative_to(self.root)} ({problem})" for file, problem in damaged[:3])
            raise DataError(f"{self.name}: {len(damaged)} of {len(self.files):,} pictures in {self.root} cannot be decoded: {named}"
                            f"{', ...' if damaged[3:] else ''}; {self.mend}")

    def interleaved(self, part: str) -> list[tuple[Path, int]]:
        """A part's pictures with their classes' numbers, one of each class in turn."""
        turns = sorted((turn, label, file) for label, files in enumerate(self.parts[part].values()) for turn, file in enumerate(files))
        return [(file, label) for _, label, file in turns]


def pictures(folder: Path) -> list[Path]:
    """The pictures of a folder, in the order of the hashes of their names without the ending: a few of them are no special ones, and
    every edition of a data set has the same order."""
    found = [f for f in folder.iterdir() if f.suffix.lower() in KINDS and f.name[0] != "."] if folder.is_dir() else []
    return sorted(found, key=lambda f: (hashlib.sha256(os.fsencode(f.stem)).digest(), f.name))


def square(file: Path, size: int) -> np.ndarray:
    """A picture's centre square at `size` pixels, (size, size, 3) uint8: upright, on white where it is transparent.

    Scaled with PIL's antialiasing HAMMING filter: its weights are never negative, so that no halo runs along black and white edges.
    """
    from PIL import Image, ImageOps

    with Image.open(file) as opened:
        if opened.mode[0] in "IF":
            raise ValueError(f"{opened.mode} pixels, not 8 bits")
        image = ImageOps.exif_transpose(opened)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        scaled = image.convert("RGB").resize((size, size), Image.Resampling.HAMMING, box=(left, top, left + side, top + side))
        return np.asarray(scaled)


def decoded(name: str, spec: dict, size: int, find: Callable[[], tuple[Collection, list[tuple[Path, int]]]]) -> tuple[Tensor, Tensor]:
    """Pixels (n, size, size, 3) uint8, mapped into memory, and labels (n,) int64 of what `spec` determines. They are not to be changed.

    They are kept in the cache under the hash of `spec` and of the decoder's version, verified when first opened, and made where they are not
    there or damaged (which is said): of the pictures that `find` gives with their labels. Only one process makes them at a time.
    """
    spec = spec | {"pillow": version("pillow")}
    folder = cache_root() / "data" / "pixels" / f"{name}-{key(spec)[:16]}"
    try:
        return _open(folder)
    except Exception:  # not there, being made, or damaged: which of them is seen while no other process makes it
        pass
    with Store().lock(folder.name):
        if os.path.lexists(folder):
            try:
                return _open(folder)
            except Exception as error:  # whatever damaged files make json and NumPy say
                _set_aside(folder, error)
        whole, chosen = find()
        try:
            _make(folder, spec, size, whole, chosen)
        except OSError as error:
            raise _cannot_write(error) from error
        return _open(folder)


@lru_cache(maxsize=None)
def _open(folder: Path) -> tuple[Tensor, Tensor]:
    meta = json.loads((folder / "meta.json").read_bytes())
    pixels = np.load(folder / "pixels.npy", mmap_mode="c", allow_pickle=False)  # copy on write: torch takes no read-only arrays
    labels = np.load(folder / "labels.npy", allow_pickle=False)
    if key(meta["spec"])[:16] != folder.name[-16:]:
        raise ValueError("meta.json is of something else")
    if (list(pixels.shape), list(labels.shape), pixels.dtype, labels.dtype) != (meta["shape"], meta["shape"][:1], np.uint8, np.int64):
        raise ValueError(f"pixels {pixels.shape} and labels {labels.shape}, not {meta['shape']}")
    total = hashlib.sha256(pixels)
    total.update(labels)
    if total.hexdigest() != meta["digest"]:
        raise ValueError("pixels and labels do not match their digest")
    return torch.from_numpy(pixels), torch.from_numpy(labels)


def _make(folder: Path, spec: dict, size: int, whole: Collection, chosen: list[tuple[Path, int]]) -> None:
    """Written picture by picture beside `folder`, which then lands in one rename."""
    making = folder.with_name(f"{folder.name}.making")
    shutil.rmtree(making, ignore_errors=True)  # what a kill left
    making.mkdir(parents=True)
    shape, total, damaged = [len(chosen), size, size, 3], hashlib.sha256(), []
    labels = np.array([label for _, label in chosen], np.int64)
    with open(making / "pixels.npy", "wb") as out:
        np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)})
        for file, _ in chosen:
            try:
                pixels = square(file, size).tobytes()
            except Exception as error:  # PIL raises OSError, SyntaxError, ValueError and more
                damaged.append((file, first_line(error)))
                continue
            out.write(pixels)
            total.update(pixels)
    if damaged:
        shutil.rmtree(making)
        whole.complain(damaged)
    total.update(labels)
    np.save(making / "labels.npy", labels)
    (making / "meta.json").write_text(json.dumps({"spec": spec, "shape": shape, "digest": total.hexdigest()}))
    for part in making.iterdir():
        with open(part, "rb") as handle:
            os.fsync(handle.fileno())
    os.rename(making, folder)


def _problem(file: Path) -> str | None:
    try:
        square(file, 8)
    except Exception as error:
        return first_line(error)
    return None


def _set_aside(folder: Path, error: Exception) -> None:
    aside = cache_root() / "data" / "damaged" / f"{folder.name}-{uuid.uuid4().hex[:8]}"
    try:
        aside.parent.mkdir(parents=True, exist_ok=True)
        os.rename(folder, aside)
    except OSError as failure:
        raise DataError(f"the decoded pictures in {folder} are damaged ({first_line(error)}) and cannot be set aside ({failure}); delete "
                        "them") from failure
    print(f"data: the decoded pictures in {folder} are damaged ({first_line(error)}); set aside, decoded anew", file=sys.stderr)


def _cannot_write(error: OSError) -> DataError:
    return DataError(f"data: cannot keep decoded pictures under {cache_root() / 'data'}: {error.strerror or error}; make room, or point "
                     "KDLIB_CACHE to a folder that can be written")
