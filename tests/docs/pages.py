"""Reads pages of documentation, and runs their code where they say."""

import inspect
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

from drfuse.models import shipped_models

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BACKBONE = "{embedding_size: 8, hidden_sizes: [8, 16], depths: [1, 1], layer_type: basic}"

# What makes a command quick: options that are appended, unless the command has one of the same name.
QUICK = {
    "simulate": {"--image-size": "32"},
    "prepare": {"--image-size": "32"},
}
# The same, in place of those that the command has.
QUICKER = {
    "demo": {"--stays": "120", "--fast": "true"},
    "simulate": {"--stays": "100"},
    "train": {"--epochs": "1", "--progress": "false", "--crop-size": "32"},
    "evaluate": {"--n-resamples": "50"},
    "explain": {"--most-steps": "32"},
    "reproduce": {
        "--epochs": "1",
        "--seeds": "0",
        "--n-resamples": "50",
        "--workers": "1",
        "--crop-size": "32",
        "--model-args": f"{{dim: 16, feedforward: 16, cxr_backbone: {BACKBONE}}}",
    },
    "tune": {
        "--epochs": "1",
        "--trials": "2",
        "--alignment-weight": "[0.0, 1.0]",
        "--orthogonality-weight": "[1.0]",
        "--auxiliary-weight": "[0.5]",
        "--lr": "[0.001]",
        "--crop-size": "32",
        "--model-args": f"{{dim: 16, cxr_backbone: {BACKBONE}}}",
    },
}
SMALL_SYSTEMS = ["--models", "drfuse", "logistic-late"]
OWN_WITH_SIZES = "my_fusion.SumFusion"


@dataclass(frozen=True)
class Block:
    """A block of code of a page.

    Attributes:
        language: What stands after the fence.
        code: Its text.
        line: Its first line in the page.
        not_run: Why it is not run, if the line above says so.
        file: The file that it is written to, if the line above says so.
    """

    language: str
    code: str
    line: int
    not_run: str | None = None
    file: str | None = None

    @property
    def commands(self) -> list[list[str]]:
        """The words of each line of a shell, without comments."""
        lines = self.code.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of code of a page."""
    mark = ""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "fence":
            marks = dict(re.findall(r"<!-- (not run|file): (.+?) -->", mark))
            line = token.map[0] + 1 if token.map else 0
            yield Block(token.info.strip(), token.content, line, marks.get("not run"), marks.get("file"))
        mark = token.content if token.type == "html_block" else ""


def drfuse_arguments(words: list[str]) -> list[str] | None:
    """Return the arguments of `drfuse` in a command, which a launcher may start."""
    starts = words[0] in ("drfuse", "srun", "torchrun") and "drfuse" in words
    return words[words.index("drfuse") + 1 :] if starts else None


def quick(arguments: list[str], stay: int) -> list[str]:
    """Return the arguments of a command that does the same on less, for a stay that exists."""
    name, *rest = [str(stay) if word == "30012345" else word for word in arguments]
    if name == "train" and "--config" not in rest:
        rest += _small_network(rest)
    if name == "reproduce" and "--models" not in rest:
        rest += SMALL_SYSTEMS
    rest += [word for pair in QUICK.get(name, {}).items() if pair[0] not in rest for word in pair]
    return [name, *rest, *(word for pair in QUICKER.get(name, {}).items() for word in pair)]


def _small_network(words: list[str]) -> list[str]:
    model = words[words.index("--model") + 1] if "--model" in words else "DrFuse"
    shipped = shipped_models().get(model)
    taken = set(inspect.signature(shipped).parameters) if shipped else set()
    if model == OWN_WITH_SIZES:
        taken = {"dim", "cxr_backbone"}
    sizes = {"dim": "16", "feedforward": "16", "cxr_backbone": BACKBONE}
    return [word for key, size in sizes.items() if key in taken for word in (f"--model.{key}", size)]
