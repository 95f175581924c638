"""What suites that read files share."""

import hashlib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

import numpy as np

from kdlib.data import DataError, MissingData


def rgb(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def decodes(path: Path) -> bool:
    try:
        rgb(path)
    except Exception:  # PIL raises OSError, SyntaxError, ValueError and more
        return False
    return True


def installed(package: str, name: str, distribution: str) -> Path:
    """The folder of an installed package; MissingData where it is not installed."""
    try:
        return Path(str(resources.files(package)))
    except ModuleNotFoundError:
        raise MissingData(f"{name}: needs {distribution}, which is not installed; pip install 'kdlib[data]'") from None


def photographs(name: str, files: Iterable[str], digest: str) -> dict[str, Path]:
    """Photographs that scikit-learn and scikit-image install, by file name, whose content has this digest; else a DataError."""
    packages = {"sklearn.datasets.images": "scikit-learn", "skimage.data": "scikit-image"}
    folders, anew = [installed(package, name, of) for package, of in packages.items()], f"install {' and '.join(packages.values())} anew"
    found = {file: folders[file not in ("china.jpg", "flower.jpg")] / file for file in files}
    if lacking := [str(path) for path in found.values() if not path.is_file()]:
        raise DataError(f"{name}: {', '.join(lacking)} not found; {anew}")
    verify(name, digest, b"".join(path.read_bytes() for path in found.values()), f"of {' and '.join(map(str, folders))}", anew)
    return found


def verify(name: str, declared: str, content: bytes, where: str, mend: str) -> None:
    """Compare content with the digest that a suite declares for it; a DataError where they differ."""
    found = hashlib.sha256(content).hexdigest()[:16]
    if found != declared:
        raise DataError(f"{name}: the content {where} is not the declared one (digest {found}, declared {declared}): "
                        f"incomplete, damaged or another edition; {mend}")
