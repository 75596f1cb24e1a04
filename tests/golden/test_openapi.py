"""docs/openapi.json is what the API says of itself; a change there is a change for its users."""

import json
import os
from pathlib import Path

from sterna.api.app import build
from sterna.api.services import Services

FILE = Path(__file__).parents[2] / "docs" / "openapi.json"
PARTS = (
    "facts",
    "hosts",
    "peer_facts",
    "vms",
    "switches",
    "pools",
    "operations",
    "moves",
    "storage_moves",
)


def described() -> dict:
    schema = build(Services(name="alpha", **dict.fromkeys(PARTS))).openapi()
    schema["info"]["version"] = "1"  # of the API; that of the package changes with each release
    return schema


def test_the_description_that_is_checked_in_is_the_one_that_is_served():
    text = json.dumps(described(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    if os.environ.get("STERNA_GOLDEN") == "write":
        FILE.parent.mkdir(exist_ok=True)
        FILE.write_text(text)
    assert FILE.read_text() == text, "docs/openapi.json differs; if that is right: make golden"


def test_every_route_is_described_by_a_sentence_and_says_how_errors_look():
    schema = described()
    assert schema["openapi"].startswith("3.1")
    names = set()
    for path, methods in schema["paths"].items():
        assert path == "/v1" or path.startswith("/v1/")
        for method, route in methods.items():
            where = f"{method} {path}"
            assert route["description"], where
            assert "default" in route["responses"], where
            assert "422" not in route["responses"], f"{where}: bad requests are answered with 400"
            names.add(route["operationId"])
    assert len(names) == sum(len(methods) for methods in schema["paths"].values())
