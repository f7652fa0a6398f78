"""What the site has beside the pages: the notebook as a page, figures from outside docs/, formulas drawn."""

import base64
import json
import pathlib
import posixpath
import re
from typing import Any

from mkdocs.structure.files import File, Files

from formulas import in_page

DOCS = pathlib.Path(__file__).parent
ROOT = DOCS.parent
OUTSIDE = re.compile(r"\]\(((?:\.\./)+[^)#]*)")
"""A link from a page to something beside docs/."""


def on_files(files: Files, *, config: Any) -> Files:
    """The files of the site: the notebook as a page with its pictures, and what pages link to outside of docs/."""
    notebook = files.get_file_from_path("quickstart.ipynb")
    if notebook is not None:
        page, pictures = from_notebook(json.loads(notebook.content_string))
        files.append(File.generated(config, "quickstart.md", content=page))
        for name, picture in pictures.items():
            files.append(File.generated(config, name, content=picture))
    linked = {path for file in files.documentation_pages() for path in outside(file.content_string, file.src_uri).values()}
    for path in sorted(linked):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """A page whose links to files outside of docs/ lead to their copies in the site."""
    here, paths = posixpath.dirname(page.file.src_uri) or ".", outside(markdown, page.file.src_uri)
    return OUTSIDE.sub(lambda link: f"]({posixpath.relpath(paths[link[1]], here)}" if link[1] in paths else link[0], markdown)


def on_page_content(content: str, *, page: Any, **_: Any) -> str:
    """A page with its formulas drawn, but for lists of options, in which names are names."""
    return content if page.file.src_uri in ("options.md", "original.md") else in_page(content)


def outside(markdown: str, src_uri: str) -> dict[str, str]:
    """Links of a page that leave docs/, and the files of the repository they mean: of a folder of results its table."""
    found = {}
    for link in OUTSIDE.findall(markdown):
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(src_uri), link))
        if not path.startswith("docs/"):
            found[link] = f"{path}/table.json" if (ROOT / path).is_dir() else path
    return found


def from_notebook(notebook: dict[str, Any]) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and the pictures in its outputs by name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(f"```python\n{source}\n```" if cell["cell_type"] == "code" else source)
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"quickstart-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                parts.append(f"![What the cell above draws]({name})")
            elif text := "".join(output.get("text", data.get("text/plain", ()))):
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n", pictures
