"""The ring of a journal, and the cursors over several."""

from __future__ import annotations

import msgspec
import pytest

from llumnix.control.orders import MoveCause, StayCause
from llumnix.journal.entries import KINDS, InstanceNoted, JournalEntry, ParkingNoted, StayNoted
from llumnix.journal.journal import ALL_ENTRIES, EntryFilter, Journal, read_cursor, read_together, show_cursor
from llumnix.types import InstanceId


def journal_of(count: int, keep: int = 4, first: int = 1) -> Journal:
    journal = Journal("f0", first=first, keep=keep)
    for number in range(count):
        journal.note(float(number), ParkingNoted(), f"r{number}")
    return journal


def requests(entries: tuple[JournalEntry, ...]) -> list[str | None]:
    return [entry.request for entry in entries]


def test_the_catalogue_is_closed() -> None:
    """A new kind is a change of what clients are promised: it belongs into the changelog, and here."""
    assert (
        *("refused", "dispatch", "first_token", "preempted", "moved", "stayed", "parked", "replayed", "ended"),
        *("instance", "round", "scale", "role", "drain"),
    ) == KINDS


def test_whoever_asks_again_and_again_misses_nothing_and_hears_nothing_twice() -> None:
    journal, heard, place = journal_of(0), [], 0
    for number in range(10):
        journal.note(float(number), ParkingNoted(), f"r{number}")
        if number % 3 == 2 or number == 9:
            part = journal.after(place)
            heard += requests(part.entries)
            place = part.next
            assert part.lost == 0
    assert heard == [f"r{number}" for number in range(10)]


def test_whoever_comes_late_is_told_how_many_are_lost() -> None:
    part = journal_of(10, keep=4).after(3)
    assert requests(part.entries) == ["r6", "r7", "r8", "r9"]
    assert part.lost == 3  # r3, r4, r5


def test_a_part_ends_where_the_next_one_begins() -> None:
    journal = journal_of(4)
    first = journal.after(0, limit=3)
    second = journal.after(first.next, limit=3)
    assert requests(first.entries + second.entries) == ["r0", "r1", "r2", "r3"]
    assert journal.after(second.next).entries == ()


def test_what_nobody_wants_is_passed_over_and_does_not_count() -> None:
    journal = journal_of(4, keep=9)
    for instance in ("i1", "i0", "i1"):
        journal.note(9.0, InstanceNoted(serves=True), instance=InstanceId(instance))
    part = journal.after(0, limit=2, wanted=EntryFilter(kinds=("instance",), instance=InstanceId("i1")))
    assert ([entry.seq for entry in part.entries], part.next) == ([5, 7], 7)
    assert requests(journal.newest(1, EntryFilter(kinds=("parked",))).entries) == ["r3"]


def test_a_move_is_about_both_of_its_instances() -> None:
    journal = Journal("f0")
    journal.note(
        1.0,
        StayNoted(InstanceId("i1"), MoveCause.BALANCE, StayCause.REFUSED, "m1", "balance"),
        "r",
        instance=InstanceId("i0"),
    )
    found = {name: journal.newest(9, EntryFilter(instance=InstanceId(name))).entries for name in ("i0", "i1", "i2")}
    assert [len(entries) for entries in found.values()] == [1, 1, 0]


def test_several_journals_are_read_as_one_and_nothing_is_missed_or_told_twice() -> None:
    journals = [Journal("f0"), Journal("s")]
    for number in range(20):
        journals[number % 3 == 0].note(float(number), ParkingNoted(), f"r{number}")
    heard: list[str | None] = []
    places = {"f0": 0, "s": 0}
    for _ in range(5):
        reading = read_together(places, [journal.read(places, 6, ALL_ENTRIES) for journal in journals], 6)
        heard += requests(reading.entries)
        places = reading.places
    assert heard == [f"r{number}" for number in range(20)]


def test_whoever_begins_to_read_hears_what_happened_last_and_goes_on_from_there() -> None:
    journals = [journal_of(3), Journal("s")]
    journals[1].note(1.5, ParkingNoted(), "s")
    first = read_together(None, [journal.read(None, 2, ALL_ENTRIES) for journal in journals], 2)
    assert (requests(first.entries), first.places) == (["s", "r2"], {"f0": 3, "s": 1})


def test_a_journal_that_did_not_answer_a_reader_at_first_tells_what_happened_last_and_goes_on_from_there() -> None:
    heard, late = journal_of(3), Journal("f1", first=5_000)
    for number in range(9):
        late.note(float(number), ParkingNoted(), f"late {number}")
    places = read_together(None, [heard.read(None, 2, ALL_ENTRIES)], 2).places
    assert places == {"f0": 3}
    told: list[str | None] = []
    for _ in range(2):
        reading = read_together(places, [journal.read(places, 2, ALL_ENTRIES) for journal in (heard, late)], 2)
        told += requests(reading.entries)
        places = reading.places
        late.note(20.0, ParkingNoted(), "later")
    assert told == ["late 7", "late 8", "later"]


def test_the_place_in_a_journal_that_does_not_answer_stays() -> None:
    reading = read_together({"f0": 1, "s": 7}, [journal_of(2).read({"f0": 1}, 9, ALL_ENTRIES)], 9)
    assert reading.places == {"f0": 2, "s": 7}


def test_the_place_of_somebody_who_read_the_journal_of_a_process_that_died() -> None:
    """The one that took its place begins behind it: all of its entries are new, none of them is lost."""
    part = journal_of(3, first=1_000_000).after(18_231)
    assert (requests(part.entries), part.lost) == (["r0", "r1", "r2"], 0)


def test_a_place_in_the_future_is_the_end() -> None:
    part = journal_of(3).after(99)
    assert (part.entries, part.next, part.lost) == ((), 3, 0)


def test_times_never_go_back() -> None:
    journal = Journal("s", since_s=100.0)
    times = [journal.note(at_s, InstanceNoted(serves=True), instance=InstanceId("i0")).at_s for at_s in (1.0, 0.5, 2.0)]
    assert times == [101.0, 101.0, 102.0]


def test_a_clock_that_was_set_is_followed_and_none_is_missed_or_told_twice() -> None:
    """Back by an hour; what the readings of two clocks are apart by is no such thing."""
    ahead_s = [1000.0]
    journal, other = Journal("f0", since_s=1000.0, clock_s=lambda: ahead_s[0]), Journal("s")
    times = []
    for number, ahead_s[0] in enumerate((1000.0, 999.9, -2600.0, -2600.1, -2600.0)):
        times.append(journal.note(4000.0 + number, ParkingNoted(), f"r{number}").at_s)
        other.note(times[-1], ParkingNoted(), f"s{number}")
    assert times == [5000.0, 5001.0, 1402.0, 1403.0, 1404.0]
    heard: list[str | None] = []
    places = {"f0": 0, "s": 0}
    for _ in range(6):
        reading = read_together(places, [each.read(places, 2, ALL_ENTRIES) for each in (journal, other)], 2)
        heard += requests(reading.entries)
        places = reading.places
    assert [name for name in heard if str(name).startswith("r")] == [f"r{number}" for number in range(5)]
    assert len(heard) == len(set(heard)) == 10


def test_an_entry_reads_the_same_from_json_with_all_its_keys() -> None:
    entry = Journal("f0").note(1.5, ParkingNoted(), "r")
    text = msgspec.json.encode(entry)
    assert msgspec.json.decode(text) == {
        "at": 1.5,
        "by": "f0",
        "seq": 1,
        "what": {"kind": "parked"},
        "request": "r",
        "sequence": None,
        "instance": None,
        "why": "",
    }
    assert msgspec.json.decode(text, type=JournalEntry) == entry


def test_cursors_are_one_word() -> None:
    places = {"f1": 990, "f0": 18_231, "s": 12}
    assert show_cursor(places) == "f0.18231-f1.990-s.12"
    assert read_cursor(show_cursor(places)) == places
    assert read_cursor("") == {}


@pytest.mark.parametrize("text", ["f0", "f0.x", "f0.-1", "f0.1-", ".5", "f0.1 -s.2", f"f0.{10**20}"])
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no place in a journal"):
        read_cursor(text)
