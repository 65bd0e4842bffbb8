"""CustomResourceDefinitions as JSON schemas that refuse what the API server would leave out or turn down."""

from pathlib import Path
from typing import Any

import yaml


def schema_of(folder: Path, kind: str, version: str = "v1") -> dict[str, Any]:
    """The schema of a kind, out of the definitions (`*.yaml`) in a folder; raises LookupError where none has it."""
    for path in sorted(folder.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if document is None or document.get("kind") != "CustomResourceDefinition":
                continue
            spec = document["spec"]
            for found in spec["versions"]:
                if (spec["names"]["kind"], found["name"]) == (kind, version):
                    return strict(found["schema"]["openAPIV3Schema"])
    raise LookupError(f"no definition in {folder} has {kind} {version}")


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema, and no field that it does not know: the API server drops those without a word.

    `x-kubernetes-int-or-string` and `x-kubernetes-preserve-unknown-fields` mean to the API server what they say. An
    object of which nothing is said, such as `metadata`, may hold anything.
    """
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {name: value for name, value in schema.items() if not name.startswith("x-kubernetes-")}
    made.pop("format", None)
    if schema.get("nullable"):
        made["type"] = [made["type"], "null"]
    if "properties" in schema:
        made["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
    if isinstance(schema.get("additionalProperties"), dict):
        made["additionalProperties"] = strict(schema["additionalProperties"])
    if "items" in schema:
        made["items"] = strict(schema["items"])
    return made
