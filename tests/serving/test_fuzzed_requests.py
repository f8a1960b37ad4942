"""No request stops a gateway or is answered with an undeclared status, and good events arrive.

The long form, on a real stack: python -m benchmarks fuzz.
"""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from benchmarks.fuzz.cases import drawn_seed
from benchmarks.fuzz.http import fuzz_http

CASES = 200


@pytest.mark.slow
def test_drawn_requests_break_nothing(make_harness: Any) -> None:
    seed = drawn_seed()
    print(f"TIDEMILL_SEED={seed}")
    harness = make_harness()
    client = TestClient(harness.client.app, raise_server_exceptions=False)
    tally = fuzz_http(client, CASES, seed)
    assert tally.faults == []
    assert tally.cases >= CASES // 2
    assert harness.client.post("/v1/catalogue", json={"video_id": "good", "title": "T"}).json() == {
        "accepted": 1,
        "changed": 1,
    }
    harness.wait_until(lambda: harness.gateway.catalogue.available("good"), 60.0)
    assert harness.send_event("like", "good", "good-user").status_code == 202
    harness.wait_until(lambda: harness.engaged("good-user") == ["good"], 60.0)
