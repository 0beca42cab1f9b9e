"""schemas.py OUT VERSION CRDS...: JSON schemas for kubeconform, from the package kubernetes-validate and from files of CRDs.

OUT/k8s/vVERSION-strict/KIND-GROUP-VERSION.json are the built-in kinds, OUT/crds/GROUP/KIND_VERSION.json the others.
"""
import importlib.util
import json
import pathlib
import sys

import yaml

# What is under these says what must or must not be there, and not all that may be.
CONDITIONS = ("oneOf", "anyOf", "allOf", "not")


def built_in(out, version):
    package = pathlib.Path(importlib.util.find_spec("kubernetes_validate").origin).parent
    target = out / "k8s" / f"v{version}-strict"
    target.mkdir(parents=True, exist_ok=True)
    sources = list((package / "kubernetes-json-schema" / f"v{version}-local-strict").glob("*.json"))
    if not sources:
        sys.exit(f"there are no schemas of Kubernetes {version}")
    for source in sources:
        # They name each other by an address of their first home.
        text = source.read_text().replace('"/api/_definitions.json#', '"_definitions.json#')
        schema = json.loads(text)
        schema.pop("$id", None)
        (target / source.name).write_text(json.dumps(schema))


def strict(schema, condition=False):
    """A structural schema as a JSON schema that takes no field that it does not know."""
    if isinstance(schema, list):
        return [strict(item, condition) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {}
    for key, value in schema.items():
        if key in ("properties", "patternProperties") and isinstance(value, dict):
            made[key] = {name: strict(item, condition) for name, item in value.items()}
        else:
            made[key] = strict(value, condition or key in CONDITIONS)
    if made.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
        made.setdefault("anyOf", [{"type": "integer"}, {"type": "string"}])
    if made.pop("nullable", False) and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    closed = "properties" in made and not condition and not made.get("x-kubernetes-preserve-unknown-fields")
    if closed:
        made.setdefault("additionalProperties", False)
    return made


def custom(out, file):
    for document in yaml.load_all(file.read_text(), Loader=yaml.SafeLoader):
        if not document or document.get("kind") != "CustomResourceDefinition":
            continue
        spec = document["spec"]
        for version in spec["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            for field in ("apiVersion", "kind"):
                schema["properties"].setdefault(field, {"type": "string"})
            schema["properties"]["metadata"] = {"type": "object"}
            schema["$schema"] = "http://json-schema.org/draft-07/schema#"
            folder = out / "crds" / spec["group"]
            folder.mkdir(parents=True, exist_ok=True)
            name = f"{spec['names']['kind'].lower()}_{version['name']}.json"
            (folder / name).write_text(json.dumps(schema))


def main():
    out = pathlib.Path(sys.argv[1])
    built_in(out, sys.argv[2])
    for file in sys.argv[3:]:
        custom(out, pathlib.Path(file))


main()
