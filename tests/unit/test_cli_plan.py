"""Plans as people edit them: what is no report of a check is refused with one sentence."""

from __future__ import annotations

import json

import pytest

from sterna.cli import plan
from sterna.errors import BadSpec

WHOLE = {
    "vm_id": "1",
    "target": "hv-b",
    "wishes": {"target": "hv-b"},
    "facts": {},
    "findings": [{"id": "network.mtu"}],
}


def test_a_plan_is_read(tmp_path):
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(WHOLE))
    assert plan.approved(plan.read(str(file)))["approved"]["findings"] == ["network.mtu"]


@pytest.mark.parametrize("finding", ["network.mtu", 1, None, {}, {"id": 1}])
def test_a_plan_with_a_finding_without_an_id_is_refused(tmp_path, finding):
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({**WHOLE, "findings": [finding]}))
    with pytest.raises(BadSpec, match="a finding in it has no id"):
        plan.read(str(file))
