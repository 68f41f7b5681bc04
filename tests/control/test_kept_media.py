"""What a front end keeps of images and the like is bounded over all its streams."""

from __future__ import annotations

from llumnix.control.kept_media import KeptMedia
from llumnix.types import RequestId

A, B = RequestId("a"), RequestId("b")
MB = 1 << 20


def test_streams_that_fit_together_are_kept() -> None:
    kept = KeptMedia(3 * MB)
    assert [kept.keep(A, MB), kept.keep(B, 2 * MB)] == [True, True]
    assert kept.bytes == 3 * MB


def test_one_that_does_not_fit_says_how_much_it_would_have_been() -> None:
    kept = KeptMedia(3 * MB)
    kept.keep(A, 2 * MB)
    why = kept.why_not(3 * MB // 2)
    assert "1.5 MB" in why
    assert "--kept-media-mb allows 3 MB" in why
    assert not kept.keep(B, 3 * MB // 2)
    kept.forget(B)
    assert kept.bytes == 2 * MB


def test_stream_of_tokens_alone_needs_no_room() -> None:
    kept = KeptMedia(0)
    assert kept.why_not(0) == ""
    assert kept.keep(A, 0)
    assert kept.why_not(1) != ""


def test_room_comes_back_once_for_each_stream_that_ends() -> None:
    kept = KeptMedia(2 * MB)
    kept.keep(A, 2 * MB)
    for _ in range(2):
        kept.forget(A)
    assert kept.bytes == 0
    assert kept.keep(B, 2 * MB)
