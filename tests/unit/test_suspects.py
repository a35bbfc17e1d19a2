"""Evidence of what killed a process outlives the process, and garbage in it harms nobody."""

from __future__ import annotations

from pathlib import Path

from rabbitflow.worker.suspects import KEPT_STRIKES, Strike, Strikes, SuspectNote, strikes_from_json


def test_a_note_is_read_by_another_process(tmp_path: Path) -> None:
    writer, reader = SuspectNote(tmp_path / "note"), SuspectNote(tmp_path / "note")
    assert reader.read() is None
    writer.write("event-1")
    assert reader.read() == "event-1"
    writer.write("e")
    assert reader.read() == "e"
    writer.survived()
    assert reader.read() is None
    assert reader.has_progress
    writer.clear()
    assert not reader.has_progress
    reader.close()
    assert not (tmp_path / "note").exists()


def test_strikes_add_up_and_survive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state" / "payment.strikes.json"
    Strikes(path).add("event-1", "signal 11 (SIGSEGV)")
    assert Strikes(path).add("event-1", "exit code 3") == Strike(2, "exit code 3")
    assert strikes_from_json(Strikes(path).as_json()) == {"event-1": Strike(2, "exit code 3")}


def test_only_the_latest_strikes_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "strikes.json"
    path.write_text("{" + ",".join(f'"e{number}": [1, ""]' for number in range(KEPT_STRIKES)) + "}")
    Strikes(path).add("new", "")
    kept = Strikes(path).as_json()
    assert len(kept) == KEPT_STRIKES
    assert "new" in kept
    assert "e0" not in kept


def test_half_a_file_is_no_evidence_and_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "strikes.json"
    path.write_text('{"event-1": [2, "sig')
    assert Strikes(path).as_json() == {}
    assert Strikes(path).add("event-1", "") == Strike(1, "")
