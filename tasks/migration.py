"""`touchstone migrate`: params.yaml, or an overlay, from the form with a section per stage to the mapping `stages`.

The text is cut and pasted, not written anew, so that comments and the way things are written stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.checks import EARLIER
from pipelines.config import read_yaml
from pipelines.errors import UserError
from pipelines.store import replacing

NAMES = {"sft": "sft", "difficulty": "difficulty", "synthesis": "synthesis", "merging": "merged"}
"""Section -> the name of its stage now."""
UNDERSTOOD = {
    "sft": {"kind": "sft", "init": "base", "data": "curation/sft"},
    "difficulty": {"kind": "grade", "init": "sft", "data": "curation/rl"},
    "synthesis": {"kind": "synthesise", "data": "difficulty/graded"},
    "merging": {"kind": "merge", "init": "sft"},
}
"""Section -> what was understood of its stage."""
DATA = "data: [difficulty, synthesis]"
"""What every RL stage read."""


def migrate(file: Path) -> list[str]:
    """Rewrite the file, whose comments stay with what they stood at. Returns what was done, a line each; nothing where it has the new form.

    Raises:
        UserError: no such file, not a mapping, in both forms at once, or with an RL stage whose name another stage has now.
    """
    content = read_yaml(file)
    old = [name for name in EARLIER if name in content]
    if not old:
        return []
    if "stages" in content:
        raise UserError(f"{file}: has the mapping `stages` and {', '.join(old)} too; move what they say into `stages`")
    experts = (content.get("rl") or {}).get("stages") or {}
    if taken := [name for name in experts if name in (*NAMES.values(), "sources", "curation", "base", "evaluation", "report")]:
        raise UserError(f"{file}: rl.stages.{taken[0]}: another stage is called so now; choose another name first")
    text, told = _rewritten(_Text(file.read_text()), content, experts)
    if lost := _lost(content, text):
        raise UserError(f"{file}: {lost} is written in a way that cannot be moved as it is, such as with an alias; move it into `stages` yourself")
    with replacing(file) as temporary:
        temporary.write_text(text)
    return told


def _lost(content: dict[str, Any], text: str) -> str | None:
    """What would not have the settings that it had, but for those that have another name now."""
    try:
        stages = yaml.safe_load(text)["stages"]
    except yaml.YAMLError:
        return "something"
    sections = {section: (name, content[section]) for section, name in NAMES.items() if section in content}
    sections |= {f"rl.stages.{name}": (name, given) for name, given in ((content.get("rl") or {}).get("stages") or {}).items()}
    for section, (name, given) in sections.items():
        kept = {key: value for key, value in (given or {}).items() if key not in ("domains", "reference", "base", "models", "search")}
        now = stages.get(name)
        if (given is None and now is not None) or any((now or {}).get(key) != value for key, value in kept.items()):
            return section
    return None


@dataclass(frozen=True)
class _Entry:
    """An entry of a mapping in the text: its key, its value, and the place of both."""

    name: str
    key: Any
    value: Any

    @property
    def flow(self) -> bool:
        return bool(self.value.flow_style)

    @property
    def entries(self) -> dict[str, _Entry]:
        found = self.value.value if isinstance(self.value, yaml.MappingNode) else []
        return {key.value: _Entry(key.value, key, value) for key, value in found}


class _Text:
    """The file as it is written."""

    def __init__(self, text: str) -> None:
        self.text = text if text.endswith("\n") else text + "\n"
        self.lines = self.text.splitlines(keepends=True)
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line))
        root = yaml.compose(self.text, yaml.SafeLoader)
        self.sections = _Entry("", root, root).entries

    def begin(self, entry: _Entry) -> int:
        """Where an entry of a block begins: at the comments directly above it, or at its line."""
        line, column = entry.key.start_mark.line, entry.key.start_mark.column
        while line and (above := self.lines[line - 1]).lstrip().startswith("#") and len(above) - len(above.lstrip()) <= column:
            line -= 1
        return self.starts[line]

    def whole(self, among: dict[str, _Entry], name: str, end: int | None = None) -> tuple[int, int]:
        """(start, end) of an entry of a block with its comments. end: of the block, the end of the file unless given."""
        following = [self.begin(entry) for entry in among.values() if self.begin(entry) > self.begin(among[name])]
        return self.begin(among[name]), min(following, default=len(self.text) if end is None else end)

    def written(self, entry: _Entry) -> tuple[int, int]:
        """(start, end) of an entry alone."""
        node = entry.value
        while isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:  # a block ends with its last scalar, not after comments
            node = node.value[-1][1] if isinstance(node, yaml.MappingNode) else node.value[-1]
        return entry.key.start_mark.index, node.end_mark.index

    def without(self, among: dict[str, _Entry], name: str, flow: bool) -> tuple[int, int]:
        """(start, end) of what goes with an entry: in a block its lines, in braces one comma."""
        start, end = self.written(among[name])
        if not flow:
            return self.starts[among[name].key.start_mark.line], self.text.index("\n", end) + 1
        names = list(among)
        place = names.index(name)
        if place + 1 < len(names):
            return start, self.written(among[names[place + 1]])[0]
        return (self.written(among[names[place - 1]])[1] if place else start), end


Edits = list[tuple[int, int, str]]
"""(start, end, what stands there instead)."""


def _rewritten(text: _Text, content: dict[str, Any], experts: dict[str, Any]) -> tuple[str, list[str]]:
    """The new text, and what was done."""
    whole = "seed" in content  # an overlay says only what differs
    cut, stages, told = [], list[str](), list[str]()
    for section in ("sft", "difficulty", "synthesis", "rl", "merging"):
        if section not in text.sections:
            continue
        place = text.whole(text.sections, section)
        cut.append(place)
        if section == "rl":
            stages += _experts(text, text.sections["rl"], place)
            for name, given in experts.items():
                told.append(f"rl.stages.{name} -> stages.{name}" + (f" with {DATA}" if given and "domains" in given else ""))
            continue
        understood = UNDERSTOOD[section] if whole else {}
        edits: Edits = []
        if section == "merging":
            edits, understood = _merging(text, text.sections[section], understood, sorted(experts) if whole else [])
        stages.append(_moved(text, text.sections[section], NAMES[section], understood, edits, place))
        told.append(f"{section} -> stages.{NAMES[section]}" + (f" with {_flow(understood)}" if understood else ""))
    if not whole and None in experts.values():
        told.append("look at this: a stage is deleted; say in stages.merged.models which are merged")
    gap = "\n" if any(text.text[start:end].endswith("\n\n") for start, end in cut) else ""
    block = "".join(["stages:\n", *stages, gap])
    first = min(start for start, _ in cut)
    written = _edited(text, 0, len(text.text), [(start, end, block if start == first else "") for start, end in cut])
    return written.rstrip("\n") + "\n", told


def _flow(values: dict[str, str]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in values.items())


def _experts(text: _Text, section: _Entry, place: tuple[int, int]) -> Iterator[str]:
    """The RL stages, after what was said in comments of the two levels above them."""
    stages = section.entries.get("stages")
    if stages is None or not stages.entries:
        return
    in_block = not section.flow and not stages.flow
    among = stages.entries
    end_of_block = place[1]
    if in_block:
        begins = text.begin(next(iter(among.values())))
    else:
        begins = section.value.start_mark.index if section.flow else stages.value.start_mark.index
        end = (section if section.flow else stages).value.end_mark.index
    for comment in re.findall(r"(?:^|\s)(#.*)", text.text[place[0] : begins] + ("" if in_block else text.text[end : place[1]])):
        yield f"  {comment}\n"
    for name, entry in among.items():
        if in_block:
            yield _moved(text, entry, name, *_expert(text, entry), text.whole(among, name, end_of_block))
        else:
            understood, edits = _expert(text, entry)
            yield f"  {name}: {_edited(text, entry.value.start_mark.index, entry.value.end_mark.index, _with(text, entry, understood, edits))}\n"


def _expert(text: _Text, entry: _Entry) -> tuple[dict[str, str], Edits]:
    """What was understood of an RL stage, and what is said otherwise now."""
    given, edits = entry.entries, list[tuple[int, int, str]]()
    if domains := given.get("domains"):
        values = "[" + ", ".join(node.value for node in domains.value.value) + "]"
        separator = ", " if entry.flow else "\n" + " " * domains.key.start_mark.column
        said = f"{DATA}{separator}where: {{domain: {values}}}"
        edits.append((*text.written(domains), said))
    if "init" in given and "reference" in given and given["init"].value.value == given["reference"].value.value:
        edits.append((*text.without(given, "reference", entry.flow), ""))
    return {"kind": "rl"} if "init" in given else {}, edits


def _merging(text: _Text, entry: _Entry, understood: dict[str, str], experts: list[str]) -> tuple[Edits, dict[str, str]]:
    """What is said otherwise of the merge now, and what was understood. experts: all RL stages, which no models meant."""
    given, edits, understood = entry.entries, list[tuple[int, int, str]](), dict(understood)
    listed = f"[{', '.join(experts)}]"
    if base := given.get("base"):
        edits.append((base.key.start_mark.index, base.key.end_mark.index, "init"))
        understood.pop("init", None)
    if experts and "models" not in given:
        understood["models"] = listed
    elif experts and given["models"].value.tag.endswith(":null"):
        edits.append((given["models"].value.start_mark.index, given["models"].value.end_mark.index, listed))
    if (search := given.get("search")) and isinstance(search.value, yaml.MappingNode):
        edits += _with(text, search, {"data": "difficulty/ungraded"}, [])
    return edits, understood


def _with(text: _Text, entry: _Entry, understood: dict[str, str], edits: Edits) -> Edits:
    """The edits, and what was understood as the first keys of the entry's value."""
    if not understood:
        return edits
    value = entry.value
    if not isinstance(value, yaml.MappingNode):
        return edits
    if entry.flow:
        inside = value.start_mark.index + 1
        return [*edits, (inside, inside, _flow(understood) + (", " if value.value else ""))]
    below, column = text.starts[entry.key.start_mark.line + 1], " " * value.value[0][0].start_mark.column
    return [*edits, (below, below, "".join(f"{column}{key}: {said}\n" for key, said in understood.items()))]


def _moved(text: _Text, entry: _Entry, name: str, understood: dict[str, str], edits: Edits, place: tuple[int, int]) -> str:
    """An entry of a block with its comments, under its new name, two columns in."""
    edits = [*_with(text, entry, understood, edits), (entry.key.start_mark.index, entry.key.end_mark.index, name)]
    by = 2 - entry.key.start_mark.column
    lines = _edited(text, *place, edits).rstrip().splitlines()
    return "".join((" " * by + line if by > 0 else line[min(-by, len(line) - len(line.lstrip())) :]).rstrip() + "\n" for line in lines)


def _edited(text: _Text, start: int, end: int, edits: Edits) -> str:
    """A part of the text with the edits done."""
    written, at = "", start
    for begin, until, instead in sorted(edits):
        written += text.text[at:begin] + instead
        at = until
    return written + text.text[at:end]
