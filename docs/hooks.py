"""What the site's build does beyond MkDocs: pages from outside docs/, formulas without scripts.

The Markdown files are written for people who read them in the repository, too. So their links lead
to files of the repository, and the build turns those into pages.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES_OF_THE_ROOT = {
    "README.md": "index.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the Markdown extension below."""
    config.markdown_extensions.append(FormulasAndRoles())
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages for the files at the root, and for the source files that any page links to."""
    for path, uri in PAGES_OF_THE_ROOT.items():
        files.append(File.generated(config, uri, content=(ROOT / path).read_text()))
    linked: set[str] = set()
    for file in files.documentation_pages():
        for match in LINK.finditer(file.content_string):
            linked.add(posixpath.normpath(posixpath.join(_folder(file.src_uri), match[1])))
    for path in linked:
        if (ROOT / path).is_file() and _uri(path).startswith("source/"):
            language = {".py": "python", ".yaml": "yaml", ".toml": "toml"}.get(Path(path).suffix)
            content = (
                f"---\nsearch: {{exclude: true}}\nhide: [toc]\n---\n# `{path}`\n\n"
                f'````{language or "text"} linenums="1"\n{(ROOT / path).read_text()}\n````\n'
            )
            level = InclusionLevel.NOT_IN_NAV
            files.append(File.generated(config, _uri(path), content=content, inclusion=level))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to the site's pages."""
    uri = page.file.src_uri
    if uri.startswith("source/"):
        return markdown

    def to_page(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(_folder(uri), match[1]))
        return posixpath.relpath(_uri(path), posixpath.dirname(uri) or ".")

    return LINK.sub(to_page, markdown)


def _folder(uri: str) -> str:
    """The folder of a page's Markdown file in the repository."""
    return (
        "" if uri in PAGES_OF_THE_ROOT.values() else posixpath.join("docs", posixpath.dirname(uri))
    )


def _uri(path: str) -> str:
    """Where a file of the repository is in the site."""
    if path in PAGES_OF_THE_ROOT:
        return PAGES_OF_THE_ROOT[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path}.md"


class FormulasAndRoles(Extension):
    """Turns LaTeX into MathML, which browsers draw by themselves, and Sphinx's roles into code."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Work on the text before fences of code are found."""
        md.preprocessors.register(_Preprocessor(md), "formulas_and_roles", priority=29)


FORMULA = re.compile(
    r"^```math\n(.*?)^```$|^\.\. math::\n((?:[ \t]*\n|[ ]+[^\n]*\n?)+)", re.M | re.S
)
ROLE = re.compile(r":(?:class|func|meth|attr|mod):`~?([^`]*)`")
CODE = re.compile(r"(^```.*?^```|``.*?``|`[^`]*`)", re.M | re.S)


class _Preprocessor(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        text = FORMULA.sub(self._formula, "\n".join(lines) + "\n")
        parts = CODE.split(ROLE.sub(r"`\1`", text))
        # The star of a shape, (B, *shape), is not emphasis.
        parts[::2] = [part.replace("*shape", r"\*shape") for part in parts[::2]]
        return "".join(parts).split("\n")

    def _formula(self, match: re.Match[str]) -> str:
        html = convert(match[1] or match[2], display="block")
        return f"\n{self.md.htmlStash.store(html)}\n\n"
