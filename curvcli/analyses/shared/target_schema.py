"""The JSON Schema of target files: the settings, and a table of options for each question."""

from typing import Any

import msgspec

from curvcli.analyses.registry import NAMES, get
from curvcli.loading.spec import PROTECTION, TargetSpec

ADDRESS = "https://curvcli.github.io/curvcli/target.schema.json"
"""Where the documentation has it; `init` writes it into target files, for editors."""

# Settings that may be one text in the place of a list.
_LISTS = ("input-key", "params")


def target_schema() -> dict[str, Any]:
    """What an editor needs to complete and check a target file."""
    kinds = {f"{name}.{o.name}": o.kind for name in NAMES for o in get(name).fields()}
    shown, components = msgspec.json.schema_components(
        [TargetSpec, *kinds.values()], ref_template="#/$defs/{name}"
    )
    options = dict(zip(kinds, shown[1:], strict=True))
    spec = components.pop("TargetSpec")
    properties: dict[str, Any] = {
        key: told for key, told in spec["properties"].items() if key not in PROTECTION
    }
    for key in _LISTS:
        told = {k: v for k, v in properties[key].items() if k == "description"}
        listed = {k: v for k, v in properties[key].items() if k != "description"}
        properties[key] = {**told, "anyOf": [listed, {"type": "string"}]}
    for name in NAMES:
        properties[name] = _table(name, options)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": ADDRESS,
        "title": "Target file of curvcli",
        "description": "What is inspected, and the options of single commands.",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "$defs": components,
    }


def _table(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a question, whose names may have ``-`` or ``_``."""
    question = get(name)
    found: dict[str, Any] = {}
    for option in question.fields():
        told = {**options[f"{name}.{option.name}"], "description": option.help}
        found |= dict.fromkeys((option.name.replace("_", "-"), option.name), told)
    return {
        "type": "object",
        "description": question.summary,
        "properties": found,
        "additionalProperties": False,
    }
