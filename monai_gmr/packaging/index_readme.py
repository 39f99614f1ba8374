"""Build backend: setuptools, which first writes ``build/README.md``, the README for a package index.

An index has none of the repository's files, so its README needs absolute addresses of links and pictures. The repository's address is only
in ``Repository`` in ``[project.urls]`` of ``pyproject.toml``. This module does not import monai_gmr, which is not installed yet.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from setuptools import build_meta

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# a picture or a link to a file or a heading of the repository; code is unchanged
LINK = re.compile(
    r"(?P<code>```.*?```|`[^`\n]*`)|(?P<picture>!?)\[(?P<text>[^]]*)\]\((?!https?:|mailto:)(?P<path>[^)]+)\)", re.DOTALL
)


def index_readme(text: str, repository: str | None, version: str) -> str:
    """A README whose links lead to the files of a version in a public repository, or are plain text without a repository.

    The addresses have GitHub's form, which GitLab redirects: ``REPOSITORY/blob/vVERSION/FILE``, pictures ``REPOSITORY/raw/...``.

    Example:
        >>> page = "![scores](docs/a.png) and [more](docs/b.md#limits)"
        >>> print(index_readme(page, "https://github.com/a/b/", "1.0"))
        ![scores](https://github.com/a/b/raw/v1.0/docs/a.png) and [more](https://github.com/a/b/blob/v1.0/docs/b.md#limits)
        >>> index_readme(page, None, "1.0")
        'scores and more'
    """

    def absolute(match: re.Match[str]) -> str:
        if match["code"] or match["path"].startswith("#"):
            return match[0]
        if not repository:
            return match["text"]
        kind = "raw" if match["picture"] else "blob"
        return f"{match['picture']}[{match['text']}]({repository.rstrip('/')}/{kind}/v{version}/{match['path']})"

    return LINK.sub(absolute, text)


def write_readme(root: Path) -> Path:
    """Writes ``build/README.md`` of a source tree, and returns its path."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    code = (root / "monai_gmr" / "__init__.py").read_text(encoding="utf-8")
    version = re.findall(r'^__version__ = "(.+)"$', code, flags=re.MULTILINE)[0]
    text = index_readme(
        (root / "README.md").read_text(encoding="utf-8"), project.get("urls", {}).get("Repository"), version
    )
    path = root / "build" / "README.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _after_readme(hook: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(hook)
    def run(*arguments: Any, **settings: Any) -> Any:
        # PEP 517: a build runs in the source tree
        write_readme(Path())
        return hook(*arguments, **settings)

    return run


get_requires_for_build_wheel = _after_readme(build_meta.get_requires_for_build_wheel)
get_requires_for_build_sdist = _after_readme(build_meta.get_requires_for_build_sdist)
get_requires_for_build_editable = _after_readme(build_meta.get_requires_for_build_editable)
prepare_metadata_for_build_wheel = _after_readme(build_meta.prepare_metadata_for_build_wheel)
prepare_metadata_for_build_editable = _after_readme(build_meta.prepare_metadata_for_build_editable)
build_wheel = _after_readme(build_meta.build_wheel)
build_sdist = _after_readme(build_meta.build_sdist)
build_editable = _after_readme(build_meta.build_editable)
