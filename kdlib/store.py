"""Finished runs and measurements under the hash of what determines them.

An entry is a folder KIND/KEY with `data.safetensors` and `meta.json`. It is made under `making/`, lands in one rename, is
verified when read, and is never computed twice. What is damaged is set aside under `damaged/` and counts as missing.
Measurements can also be read from archives: single npz files (never pickle) that are published beside a chapter, or carry
a study's parts from machine to machine. An entry's info names the weights it rests on, by their digests, and of a measurement the
device.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
import uuid
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from safetensors.numpy import load_file, save_file

Arrays = dict[str, np.ndarray]
KINDS = ("run", "measure")


class StoreError(Exception):
    """The store cannot be written or read; the message says where and what to do."""


def cache_root() -> Path:
    """KDLIB_CACHE, by default ~/.cache/kdlib."""
    return Path(os.environ.get("KDLIB_CACHE") or "~/.cache/kdlib").expanduser()


def describe(value) -> object:
    """A value as JSON-able data, for hashing: dataclasses by name, version and fields, or by their own `describe()`.

    Of a class that is not kdlib's the module counts too (`__main__` in every script and notebook: import it from a module of its own), unless
    it describes itself. What the class *does* is not seen: raise its `version` when that changes.
    """
    if hasattr(value, "describe"):
        return value.describe()
    if dataclasses.is_dataclass(value):
        fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return kind(value) | fields
    if isinstance(value, (list, tuple)):
        return [describe(v) for v in value]
    if isinstance(value, dict):
        if not all(isinstance(k, str) for k in value):  # JSON has no others, so 1 and "1" would be one
            raise TypeError(f"cannot describe {value!r}: a key that is not a string")
        return {k: describe(v) for k, v in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"cannot describe {type(value).__name__} {value!r} for a key")


def kind(value) -> dict:
    """What `describe` says of a value's class."""
    name, module = type(value).__name__, type(value).__module__
    if not isinstance(version := getattr(value, "version", None), int):
        raise TypeError(f"cannot describe {name} for a key: it needs `version: ClassVar[int] = 1`, to be raised when its code changes")
    return {"type": name, "version": version} | ({} if module.partition(".")[0] == "kdlib" else {"module": module})


def key(spec: object) -> str:
    """The first 32 hex digits of the SHA-256 of `spec` as canonical JSON."""
    return hashlib.sha256(_json(spec)).hexdigest()[:32]


def floats(value, *names: str) -> None:
    """Make these fields of a frozen dataclass floats (None stays): 1 and 1.0 are equal settings, and get equal keys."""
    for name in names:
        if getattr(value, name) is not None:
            object.__setattr__(value, name, float(getattr(value, name)))


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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
    info: dict  # what was found besides arrays (metrics, durations), and the weights it rests on
    arrays: Arrays
    place: Path  # the store's root or the archive


@dataclasses.dataclass(frozen=True)
class Kept:
    """A folder of the store: an entry, or what a kill left of one in the making, or one that was set aside."""

    kind: str  # one of KINDS, or making, or damaged
    key: str
    folder: Path
    size: int  # bytes
    written: float  # seconds since the epoch


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
        if os.path.lexists(folder):
            try:
                entry = _verified(json.loads((folder / "meta.json").read_bytes()), load_file(folder / "data.safetensors"), key, self.root)
            except Exception as error:  # whatever a damaged file makes json, safetensors or the checks say
                if isinstance(error, (OSError, MemoryError)) and not isinstance(error, _DAMAGE):
                    raise StoreError(f"store: cannot read {folder}: {error}") from error
                self._set_aside(folder, error)
            else:
                return entry
        return self._from_archives().get(key) if kind == "measure" else None

    def weights(self, kind: str, key: str) -> dict[str, str]:
        """The digests of the weights that a stored entry rests on, by the key of their run: of a run its own, and those of the
        teachers it had; of a measurement those of all networks behind it. Read without reading weights. Empty where nothing
        is known: no entry, a damaged one (as `read` will say), one of earlier versions."""
        meta = self._look(kind, key)
        return ({key: meta["arrays"]} if kind == "run" and meta else {}) | meta.get("info", {}).get("weights", {})

    def devices(self, key: str) -> list[str]:
        """The device that took a measurement, in words, and then those that trained its networks, of the store or an archive; as far as known."""
        archived = self._from_archives().get(key)
        info = self._look("measure", key).get("info", {}) or (archived.info if archived else {})
        return list(dict.fromkeys(filter(None, [info.get("device"), *info.get("trained", ())])))

    def trained_on(self, key: str) -> str | None:
        """The device that trained a run of the store, in words. None where nothing is known."""
        return self._look("run", key).get("info", {}).get("device")

    def write(self, kind: str, spec: dict, arrays: Arrays, info: dict) -> None:
        """Land an entry in one step. Arrays are NumPy; `info` is JSON-able. An entry that is there already stays."""
        name, meta = key(spec), _json(_meta(spec, info, arrays))
        folder, making = self._folder(kind, name), self._scratch(name)
        with self.lock(name):  # tells `remove` that `making` is somebody's
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
                if not folder.is_dir():
                    raise _cannot_write(self.root, error) from error
            finally:
                shutil.rmtree(making, ignore_errors=True)

    def lock(self, key: str) -> FileLock:
        """Held while an entry is computed, so that two processes do not compute it twice; freed if a process dies.

        The thread that holds it may take it again.
        """
        folder = self.root / "locks"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_write(self.root, error) from error
        return _Lock(folder / key, is_singleton=True)

    def idle(self, key: str) -> bool:
        """Whether no process computes this entry just now."""
        if not (self.root / "locks" / key).exists():
            return True
        try:
            with self.lock(key).acquire(blocking=False):
                return True
        except Timeout:
            return False

    def folders(self) -> list[Kept]:
        """Every folder of the store, the oldest first."""
        if not next(path for path in (self.root.absolute(), *self.root.absolute().parents) if path.exists()).is_dir():
            raise StoreError(f"store: {self.root} is not a folder; point KDLIB_CACHE to one")
        found = []
        for kind in (*KINDS, "making", "damaged"):
            for folder in (self.root / kind).glob("*"):
                try:
                    facts = [file.stat() for file in (folder, *folder.rglob("*"))]
                except FileNotFoundError:
                    continue  # it has just landed elsewhere, or been removed
                size = sum(f.st_size for f in facts if stat.S_ISREG(f.st_mode))
                found.append(Kept(kind, folder.name.partition("-")[0], folder, size, max(f.st_mtime for f in facts)))
        return sorted(found, key=lambda kept: kept.written)

    def remove(self, kept: Kept) -> bool:
        """Remove a folder of the store and its lock. False, and nothing is removed, while a process computes that entry."""
        lock, gone = self.lock(kept.key), self._scratch(kept.key)
        try:
            with lock.acquire(blocking=False):
                gone.parent.mkdir(exist_ok=True)
                with suppress(FileNotFoundError):  # another process was first
                    os.rename(kept.folder, gone)  # out of sight in one step: a kill leaves no half of an entry behind
                    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
                os.unlink(lock.lock_file)
        except Timeout:
            return False
        except OSError as error:
            raise StoreError(f"store: cannot remove {kept.folder}: {error.strerror or error}") from error
        return True

    def archive(self, keys: Iterable[str], file: Path) -> dict[str, Entry]:
        """`pack` measurements, and return them by key."""
        entries = {k: self.read("measure", k) for k in sorted(set(keys))}
        missing = [k for k, entry in entries.items() if entry is None]
        if missing:
            raise StoreError(f"store: {len(missing)} of {len(entries)} measurements are not in {self.root}, so they cannot "
                             f"be archived; run the chapter again")
        pack(entries, file)
        return entries

    def _from_archives(self) -> dict[str, Entry]:
        if self._archived is None:
            self._archived = {k: entry for file in self.archives for k, entry in unpack(file).items()}
        return self._archived

    def _look(self, kind: str, key: str) -> dict:
        """The checked meta.json of an entry of the store, or nothing."""
        try:
            meta = json.loads((self._folder(kind, key) / "meta.json").read_bytes())
            _check(meta, key)
            return meta
        except Exception:  # whatever a damaged file makes json or the check say
            return {}

    def _folder(self, kind: str, key: str) -> Path:
        return self.root / kind / key

    def _scratch(self, key: str) -> Path:
        return self.root / "making" / f"{key}-{uuid.uuid4().hex[:8]}"

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


def pack(entries: dict[str, Entry], file: Path) -> None:
    """Write measurements, by key, as one compressed npz file, to be read by any `Store(archives=[file])`. It lands in one step."""
    metas = {k: _meta(e.spec, e.info, e.arrays) for k, e in sorted(entries.items())}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=".making-") as folder:
            making = Path(folder, "archive.npz")
            np.savez_compressed(making, index=np.frombuffer(_json(metas), np.uint8),
                                **{f"{k}/{n}": a for k, e in sorted(entries.items()) for n, a in e.arrays.items()})
            os.replace(making, file)
    except OSError as error:
        raise StoreError(f"store: cannot write {file}: {error.strerror or error}; make room, or name another file") from error


@contextmanager
def changing(file: Path):
    """Held from reading a file to replacing it, so that of two processes neither loses what the other writes."""
    lock = file.with_name(f".{file.name}.lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()  # where that fails, FileLock may try for ever
        with FileLock(lock):
            try:
                yield
            finally:
                os.unlink(lock)
    except OSError as error:
        raise StoreError(f"store: cannot write {file}: {error.strerror or error}; make room, or name another file") from error


def unpack(file: Path) -> dict[str, Entry]:
    """The measurements of an archive by key, each of them verified."""
    try:
        with open(file, "rb") as handle:
            if not zipfile.is_zipfile(handle):  # numpy would take it for a pickle
                raise ValueError("it is no npz file, or has lost its end")
            handle.seek(0)
            with np.load(handle, allow_pickle=False) as data:
                arrays = defaultdict(dict)
                for member in data.files:
                    k, _, name = member.partition("/")
                    arrays[k][name] = data[member]
                return {k: _verified(meta, arrays[k], k, file) for k, meta in json.loads(data["index"].tobytes()).items()}
    except OSError as error:
        raise StoreError(f"store: cannot read the archive {file}: {error.strerror or error}; restore it or name another") from error
    except Exception as error:
        raise StoreError(f"store: the archive {file} is damaged: {error}; restore it or remove it") from error


_DAMAGE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)  # among the errors that reading a file can raise


class _Lock(FileLock):
    def acquire(self, *arguments, **options):
        try:
            return super().acquire(*arguments, **options)
        except Timeout:
            raise
        except OSError as error:
            raise _cannot_write(Path(self.lock_file).parents[1], error) from error


def _cannot_write(root: Path, error: Exception) -> StoreError:
    return StoreError(f"store: cannot write under {root}: {getattr(error, 'strerror', None) or error}; make room, or point "
                      "KDLIB_CACHE to a folder that can be written")


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def _json(value: object) -> bytes:
    as_read = json.loads(json.dumps(value))  # keys become strings before they are sorted, so that reading back changes nothing
    return json.dumps(as_read, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _meta(spec: dict, info: dict, arrays: Arrays) -> dict:
    meta = {"spec": spec, "info": info, "arrays": digest(arrays)}
    return {**meta, "check": key(meta)}


def _check(meta: dict, wanted: str) -> None:
    if key({k: meta[k] for k in ("spec", "info", "arrays")}) != meta["check"] or key(meta["spec"]) != wanted:
        raise ValueError("meta.json does not match its own check")


def _verified(meta: dict, arrays: Arrays, wanted: str, place: Path) -> Entry:
    _check(meta, wanted)
    if digest(arrays) != meta["arrays"]:
        raise ValueError("arrays do not match their digest")
    return Entry(meta["spec"], meta["info"], arrays, place)
