"""Manifests against KubeRay's own definitions, where they are at hand.

    GENREC_KUBERAY_CRDS=kuberay/helm-chart/kuberay-operator/crds pytest tests/unit/launch/test_crds.py

They are a megabyte each and not kept here; `kuberay_schema.py` holds the part that manifests use, for every other run.
"""

import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from crds import schema_of

EXAMPLES = Path(__file__).resolve().parents[3] / "launch" / "examples"

SMALL = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
spec:
  names: {kind: RayJob}
  versions:
  - name: v1
    schema:
      openAPIV3Schema:
        type: object
        properties:
          metadata: {type: object}
          spec:
            type: object
            required: [entrypoint]
            properties:
              entrypoint: {type: string}
              port: {x-kubernetes-int-or-string: true}
              params: {type: object, additionalProperties: {type: string}}
              pods: {type: array, items: {type: object, properties: {name: {type: string}}}}
              extra: {type: object, x-kubernetes-preserve-unknown-fields: true, properties: {a: {type: string}}}
"""


def manifests() -> list[Any]:
    """The RayJob and the RayCluster of launch/examples, which `genrec submit --render` makes."""
    found = []
    for name in ("rayjob.yaml", "raycluster.yaml"):
        documents = yaml.safe_load_all((EXAMPLES / name).read_text(encoding="utf-8"))
        found += [pytest.param(document, id=document["kind"]) for document in documents if "spec" in document]
    return found


@pytest.mark.skipif("GENREC_KUBERAY_CRDS" not in os.environ, reason="GENREC_KUBERAY_CRDS names no folder of CRDs")
@pytest.mark.parametrize("manifest", manifests())
def test_the_operators_own_definitions_accept_the_manifests(manifest: dict[str, Any]) -> None:
    schema = schema_of(Path(os.environ["GENREC_KUBERAY_CRDS"]), manifest["kind"])
    jsonschema.validate(manifest, schema, cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("spec", "is_good"),
    [
        ({"entrypoint": "genrec", "port": 1, "params": {"a": "b"}, "pods": [{"name": "x"}], "extra": {"b": 1}}, True),
        ({"entrypoint": "genrec", "port": "http"}, True),
        ({}, False),
        ({"entrypoint": 1}, False),
        ({"entryPoint": "genrec", "entrypoint": "genrec"}, False),
        ({"entrypoint": "genrec", "params": {"a": 1}}, False),
        ({"entrypoint": "genrec", "pods": [{"nam": "x"}]}, False),
    ],
)
def test_a_definition_refuses_what_it_does_not_know(tmp_path: Path, spec: dict[str, Any], is_good: bool) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    schema = schema_of(tmp_path, "RayJob")
    found = jsonschema.Draft202012Validator(schema).is_valid({"metadata": {"name": "x"}, "spec": spec})
    assert found is is_good
    with pytest.raises(LookupError, match="RayCluster v1"):
        schema_of(tmp_path, "RayCluster")
