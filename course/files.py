"""Files that are written whole or not at all."""

import os
import shutil
import tempfile
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
