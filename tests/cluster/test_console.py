"""What the launcher says, where nobody takes it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.live, pytest.mark.timeout(60)]

SPEAKS = """if True:
    import sys
    from llumnix.cluster.console import Voice
    from llumnix.cluster.service_manager import ServiceManager
    voice = Voice("text", ServiceManager({}))
    for number in range(int(sys.argv[1])):
        voice.say(f"line {number} " + 200 * "x")
    voice.say("the last", warning=True)
    voice.close()
"""


def test_console_that_stands_still_stops_nobody() -> None:
    """As after Ctrl-S, or in a pipe that nobody reads."""
    reader, writer = os.pipe()
    with subprocess.Popen([sys.executable, "-c", SPEAKS, "2000"], stdout=writer) as process:
        assert process.wait(30) == 0
    os.close(writer)
    os.close(reader)


def test_lines_come_in_order_and_warnings_beside_them() -> None:
    said = subprocess.run([sys.executable, "-c", SPEAKS, "50"], check=True, capture_output=True, text=True, timeout=30)
    assert [line.split()[1] for line in said.stdout.splitlines()] == [str(number) for number in range(50)]
    assert said.stderr == "llumnix: the last\n"


def test_last_words_of_a_process_are_words_alone() -> None:
    """They may be of a client; the greeting has lines of its own."""
    program = SPEAKS.replace('"the last"', r'"i0 ended: no \x1b[2Kroom\nfor it"')
    said = subprocess.run([sys.executable, "-c", program, "0"], check=True, capture_output=True, text=True, timeout=30)
    assert said.stderr == "llumnix: i0 ended: no \\x1b[2Kroom\nfor it\n"


def test_console_that_is_gone_ends_nobody() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen([sys.executable, "-c", SPEAKS, "5"], stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        assert process.stderr is not None
        assert process.stderr.read() == b"llumnix: the last\n"
    assert process.returncode == 0
