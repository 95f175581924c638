"""Finished runs and measurements under the hash of what determines them.

An entry is a folder KIND/KEY with `data.safetensors` and `meta.json`. It lands in one rename, is verified when read,
and is never computed twice. What is damaged is set aside and counts as missing. Measurements can also be read from
archives: single npz files (never pickle) that are published beside a chapter.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from filelock import FileLock
from safetensors.numpy import load_file, save_file

Arrays = dict[str, np.ndarray]


class StoreError(Exception):
    """The store cannot be written or read; the message says where and what to do."""


def cache_root() -> Path:
    """KDLIB_CACHE, by default ~/.cache/kdlib."""
    return Path(os.environ.get("KDLIB_CACHE") or "~/.cache/kdlib").expanduser()


def describe(value) -> object:
    """A value as JSON-able data, for hashing: dataclasses by name, version and fields, or by their own `describe()`."""
    if hasattr(value, "describe"):
        return value.describe()
    if dataclasses.is_dataclass(value):
        fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, "version": value.version, **fields}
    if isinstance(value, (list, tuple)):
        return [describe(v) for v in value]
    if isinstance(value, dict):
        return {str(k): describe(v) for k, v in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"cannot describe {type(value).__name__} {value!r} for a key")


def key(spec: object) -> str:
    """The first 32 hex digits of the SHA-256 of `spec` as canonical JSON."""
    return hashlib.sha256(_json(spec)).hexdigest()[:32]


def digest(arrays: Arrays) -> str:
    """SHA-256 over names, types, shapes and bytes: independent of the file format that holds them."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()


@dataclasses.dataclass(frozen=True)
class Entry:
    spec: dict  # what it was computed from; hashes to its key
    info: dict  # what was found besides arrays (metrics, durations)
    arrays: Arrays


class Store:
    """Entries under `root`; archives are looked into for measurements that `root` does not have."""

    def __init__(self, root: Path | None = None, archives: Iterable[Path] = (), say: Callable[[str], None] | None = None):
        self.root = Path(root or cache_root())
        self.archives = tuple(archives)
        self.say = say or _to_stderr
        self._archived: dict[str, Entry] | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "say": _to_stderr, "_archived": None}  # a copy for another process

    def read(self, kind: str, key: str) -> Entry | None:
        """The verified entry, or None where there is none or it was damaged (which is said, and set aside)."""
        folder = self._folder(kind, key)
        if folder.is_dir():
            try:
                entry = _verified(json.loads((folder / "meta.json").read_bytes()), load_file(folder / "data.safetensors"), key)
            except Exception as error:  # whatever a damaged file makes json, safetensors or the checks say
                if isinstance(error, (OSError, MemoryError)) and not isinstance(error, FileNotFoundError):
                    raise StoreError(f"store: cannot read {folder}: {error}") from error
                self._set_aside(folder, error)
            else:
                return entry
        return self._from_archives().get(key) if kind == "measure" else None

    def write(self, kind: str, spec: dict, arrays: Arrays, info: dict) -> None:
        """Land an entry in one step. Arrays are NumPy; `info` is JSON-able. An entry that is there already stays."""
        folder, making = self._folder(kind, key(spec)), self.root / "making" / uuid.uuid4().hex
        meta = _json(_meta(spec, info, arrays))
        try:
            making.mkdir(parents=True)
            save_file({n: np.asarray(a, order="C") for n, a in arrays.items()}, making / "data.safetensors")
            (making / "meta.json").write_bytes(meta)
            for file in making.iterdir():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
            folder.parent.mkdir(parents=True, exist_ok=True)
            os.rename(making, folder)
        except Exception as error:  # safetensors has an exception of its own for a full disk
            shutil.rmtree(making, ignore_errors=True)
            if not folder.is_dir():
                raise StoreError(f"store: cannot write under {self.root}: {error}; free some space, or point KDLIB_CACHE "
                                 "to a folder that can be written") from error

    def lock(self, key: str) -> FileLock:
        """Held while an entry is computed, so that two processes do not compute it twice; freed if a process dies."""
        folder = self.root / "locks"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"store: cannot write under {self.root}: {error.strerror}; point KDLIB_CACHE to a folder that "
                             "can be written") from error
        return FileLock(folder / key)

    def archive(self, keys: Iterable[str], file: Path) -> None:
        """Write measurements as one compressed npz file, to be read by any `Store(archives=[file])`."""
        entries = {k: self.read("measure", k) for k in sorted(set(keys))}
        missing = [k for k, entry in entries.items() if entry is None]
        if missing:
            raise StoreError(f"store: {len(missing)} of {len(entries)} measurements are not in {self.root}, so they cannot "
                             f"be archived; run the chapter again")
        metas = {k: _meta(e.spec, e.info, e.arrays) for k, e in entries.items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=".making-") as folder:
            making = Path(folder, "archive.npz")
            np.savez_compressed(making, index=np.frombuffer(_json(metas), np.uint8),
                                **{f"{k}/{n}": a for k, e in entries.items() for n, a in e.arrays.items()})
            os.replace(making, file)

    def _from_archives(self) -> dict[str, Entry]:
        if self._archived is None:
            self._archived = {}
            for file in self.archives:
                try:
                    with np.load(file, allow_pickle=False) as data:
                        for k, meta in json.loads(data["index"].tobytes()).items():
                            arrays = {n.split("/", 1)[1]: data[n] for n in data.files if n.startswith(f"{k}/")}
                            self._archived[k] = _verified(meta, arrays, k)
                except Exception as error:
                    raise StoreError(f"store: the archive {file} is damaged: {error}; restore it or remove it") from error
        return self._archived

    def _folder(self, kind: str, key: str) -> Path:
        return self.root / kind / key

    def _set_aside(self, folder: Path, error: Exception) -> None:
        aside = self.root / "damaged" / f"{folder.name}-{uuid.uuid4().hex[:8]}"
        try:
            aside.parent.mkdir(parents=True, exist_ok=True)
            os.rename(folder, aside)
        except FileNotFoundError:
            return  # another process was first
        except OSError as failure:
            raise StoreError(f"store: {folder} is damaged ({error}) and cannot be set aside ({failure}); delete it") from failure
        self.say(f"store: {folder} is damaged ({error}); set aside, will be computed again")


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def _json(value: object) -> bytes:
    as_read = json.loads(json.dumps(value))  # keys become strings before they are sorted, so that reading back changes nothing
    return json.dumps(as_read, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _meta(spec: dict, info: dict, arrays: Arrays) -> dict:
    meta = {"spec": spec, "info": info, "arrays": digest(arrays)}
    return {**meta, "check": key(meta)}


def _verified(meta: dict, arrays: Arrays, wanted: str) -> Entry:
    if key({k: meta[k] for k in ("spec", "info", "arrays")}) != meta["check"] or key(meta["spec"]) != wanted:
        raise ValueError("meta.json does not match its own check")
    if digest(arrays) != meta["arrays"]:
        raise ValueError("arrays do not match their digest")
    return Entry(meta["spec"], meta["info"], arrays)
