"""Files that are written whole or not at all, and archives that depend on their files alone."""

import io
import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path


def write_atomic(path: Path, content: str | bytes) -> bool:
    """Writes `content` to `path` by way of a temporary file beside it; a failure leaves the old file.

    Returns:
        Whether the file changed. An equal file is left alone, modification time included.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    if path.is_file() and path.read_bytes() == data:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        shutil.copymode(path, temporary) if path.exists() else os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return True


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the files under `folder` by relative path; empty where there is no such folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def zipped(files: Mapping[str, bytes], *, programs: Collection[str] = ()) -> bytes:
    """A zip archive of `files` by their names; equal files give equal bytes, whatever the time and the order.

    Args:
        programs: names of those that can be executed once unpacked.
    """
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # Unix, on every system
            entry.external_attr = (stat.S_IFREG | (0o755 if name in programs else 0o644)) << 16
            archive.writestr(entry, files[name], zipfile.ZIP_DEFLATED)
    return made.getvalue()


def replace_folder(source: Path, target: Path) -> list[str]:
    """Puts the folder `source` in the place of `target` and says which files changed, appeared or went.

    The old folder is renamed aside before the new one is renamed in, so a reader never meets a mixture.
    """
    before, after = contents(target), contents(source)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if not changed:
        return []
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as aside:
        shutil.copytree(source, Path(aside) / "new")
        if target.exists():
            os.replace(target, Path(aside) / "old")
        os.replace(Path(aside) / "new", target)
    return changed
