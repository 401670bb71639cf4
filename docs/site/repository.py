"""What pages link to outside docs/, brought onto the site, so that their links lead somewhere.

In the repository a link like ../python/minimal.py opens the file; on the site it opens a page with
its text, under repository/. Pages that are brought along may link further.
"""

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
AREA = "repository"
IMAGES = (".png", ".svg", ".jpg")

_FENCE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, *, config: Any, **_: Any) -> None:
    waiting = [file.src_uri for file in files.documentation_pages()]
    while waiting:
        page = waiting.pop()
        for target in targets_of(page):
            uri = uri_of(target)
            if uri is None or files.get_file_from_path(uri) is not None:
                continue
            files.append(file_of(target, uri, config))
            if target.suffix == ".md":
                waiting.append(uri)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    uri = page.file.src_uri
    home = source_of(uri).parent

    def moved(link: re.Match[str]) -> str:
        target = resolved(home, link[2])
        to = None if target is None else uri_of(target)
        if to is None:
            return link[0]
        return link[1] + posixpath.relpath(to, posixpath.dirname(uri) or ".") + link[3]

    if uri.startswith(f"{AREA}/") and source_of(uri).suffix != ".md":
        return markdown
    return "".join(
        part if part.startswith("```") else _LINK.sub(moved, part)
        for part in _FENCE.split(markdown)
    )


def source_of(uri: str) -> Path:
    """The repository's file behind a page."""
    if uri.startswith(f"{AREA}/"):
        return ROOT / uri.removeprefix(f"{AREA}/")
    return ROOT / "docs" / uri


def uri_of(target: Path) -> str | None:
    """Where the site has a file or folder of the repository; None if there is no such thing."""
    name = target.relative_to(ROOT).as_posix()
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    if target.is_dir():
        return f"{AREA}/{name}/folder.md"
    return f"{AREA}/{name}" + ("" if target.suffix in (".md", *IMAGES) else ".md")


def resolved(home: Path, link: str) -> Path | None:
    if re.match(r"\w+:", link):
        return None
    target = Path(os.path.normpath(home / link))
    return target if target.is_relative_to(ROOT) and target.exists() else None


def targets_of(uri: str) -> list[Path]:
    source = source_of(uri)
    if not source.is_file():  # a page of the site alone
        return []
    text = "".join(part for part in _FENCE.split(source.read_text()) if part[:3] != "```")
    found = (resolved(source.parent, link) for _, link, _ in _LINK.findall(text))
    return [target for target in found if target is not None]


def file_of(target: Path, uri: str, config: Any) -> File:
    if target.suffix in (".md", *IMAGES):
        return File.generated(config, uri, abs_src_path=str(target))
    name = target.relative_to(ROOT).as_posix()
    if target.is_dir():
        shown = "\n".join(f"- `{one.name}`" for one in sorted(target.iterdir()) if shows(one))
        return File.generated(config, uri, content=f"# {name}/\n\n{shown}\n")
    text = target.read_text()
    fence = "````"
    language = target.suffix.lstrip(".").replace("cuh", "cpp").replace("cu", "cpp")
    content = f"# {target.name}\n\n`{name}`\n\n{fence}{language}\n{text.rstrip()}\n{fence}\n"
    return File.generated(config, uri, content=content)


def shows(path: Path) -> bool:
    return not path.name.startswith((".", "_")) or path.name == "__init__.py"
