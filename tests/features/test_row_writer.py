"""Laws of row writes: lost scripts are loaded again, large batches are written in parts."""

from __future__ import annotations

from streams.bus.contract import Stamp

NOW = 1_700_000_000_000


def test_a_server_that_lost_its_scripts_gets_them_again(online, event_table):
    for offset in range(3):
        event = {"kind": "like", "event_time_ms": NOW + offset, "event_id": f"{offset}"}
        assert online.fold("user", event_table([event]), Stamp("one", 0, offset)) == 1
        online.connection.client.script_flush()
    assert online.read("user", ["u"], NOW + 9).columns["like_count_all"].tolist() == [3]


def test_a_batch_with_more_rows_than_fit_one_write_is_folded_completely(online, event_table):
    events = [
        {"kind": "like", "event_time_ms": NOW, "event_id": f"{i}", "user_id": f"u{i}"}
        for i in range(5000)
    ]
    assert online.fold("user", event_table(events), Stamp("one", 0, 0)) == 5000
    frame = online.read("user", [f"u{i}" for i in range(5000)], NOW)
    assert frame.columns["like_count_1h"].tolist() == [1] * 5000
