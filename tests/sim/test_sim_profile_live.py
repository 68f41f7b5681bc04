"""`llumnix profile`: the fit, and a server of known cost that is measured over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from llumnix.cli import main
from llumnix.errors import ServerRefused, UsageError
from llumnix.sim.profiles.cli import Told, ask_server
from llumnix.sim.profiles.file import load_profile, write_profile
from llumnix.sim.profiles.live import DecodeSample, Plan, PrefillSample, Unseen, fit, measure_server, worst_error

UNSEEN = Unseen(total_blocks=500, state_blocks=3)


def samples(noise: float = 0.0) -> tuple[list[PrefillSample], list[DecodeSample]]:
    """Of a server with 12 ms a request, a prefill of 8 ms + 0.1 ms/token, and a decode of 10 ms + 1 ms/sequence."""
    wave = [1 + noise * (-1) ** index for index in range(20)]
    prefill = [
        PrefillSample(n, (20 + 0.1 * n + 1e-5 * n * n) * wave[i]) for i, n in enumerate((16, 64, 256, 512, 1024))
    ]
    decode = [
        DecodeSample(b, b * c, (7 + b + 0.002 * b * c) * wave[i])
        for i, (b, c) in enumerate((b, c) for b in (1, 2, 4, 8) for c in (32, 512))
    ]
    return prefill, decode


def test_exact_samples_give_the_coefficients_back() -> None:
    profile = fit(*samples(), UNSEEN, "test", "made up")
    assert profile.prefill.per_token_ms == pytest.approx(0.1)
    assert profile.prefill.per_token_squared_ms == pytest.approx(1e-5)
    assert profile.decode.batch_ms == pytest.approx((8, 9, 11, 15))
    assert profile.decode.per_context_token_ms == pytest.approx(0.002)
    assert profile.prefill.base_ms + profile.host.request_ms == pytest.approx(20)
    assert (profile.memory.total_blocks, profile.memory.state_blocks) == (500, 3)
    assert max(worst_error(profile, *samples())) < 1e-6


def test_noise_of_3_percent_stays_an_error_of_about_that() -> None:
    profile = fit(*samples(0.03), UNSEEN, "test", "made up")
    assert max(worst_error(profile, *samples(0.03))) < 0.08


def test_no_coefficient_comes_out_negative() -> None:
    falling = [PrefillSample(n, 30.0 - n / 100) for n in (16, 256, 1024)]
    profile = fit(falling, samples()[1], UNSEEN, "test", "made up")
    assert profile.prefill.per_token_ms > 0
    assert profile.prefill.per_token_squared_ms >= 0


def test_one_length_is_not_enough() -> None:
    with pytest.raises(UsageError, match="two lengths"):
        fit(samples()[0][:1], samples()[1], UNSEEN, "test", "made up")


class FakeServer:
    """Makes a token every 5 ms, the first after 10 ms."""

    def __init__(self, instead: bytes | None = None, models: str = '{"data": [{"id": "tiny"}]}') -> None:
        """`instead`: what it says to a completion before it hangs up."""
        self.instead, self.models = instead, models.encode()
        self.places: Counter[str] = Counter()
        """Requests by the instance that they asked for."""
        self.connections = 0
        self.closed = asyncio.Semaphore(0)
        """Released by every connection at its end."""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                if head.startswith("get"):
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(self.models), self.models))
                    continue
                length = int(
                    next(line for line in head.split("\r\n") if line.startswith("content-length")).split(":")[1]
                )
                asked = json.loads(await reader.readexactly(length))
                assert asked["ignore_eos"]
                if self.instead is not None:
                    writer.write(self.instead)
                    return
                self.places.update(
                    line.rpartition(" ")[2] for line in head.split("\r\n") if "data-parallel-rank" in line
                )
                assert all(isinstance(token, int) for token in asked["prompt"])
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                await asyncio.sleep(0.01)
                for _ in range(asked["max_tokens"]):
                    await asyncio.sleep(0.005)
                    line = 'data: {"choices": [{"text": "\x85 \u2028"}]}\n\n'.encode()  # no ends of lines
                    writer.write(b"%x\r\n%s\r\n" % (len(line), line))
                writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            await writer.wait_closed()
            self.closed.release()

    async def all_closed(self) -> None:
        async with asyncio.timeout(10):
            for _ in range(self.connections):
                await self.closed.acquire()


@pytest.mark.parametrize("instances", [1, 3])
async def test_a_server_is_measured_by_its_streams(instances: int) -> None:
    fake = FakeServer()
    server = await asyncio.start_server(fake.answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    plan = Plan(prompt_tokens=(8, 16), batches=(1, 2), contexts=(8,), output_tokens=12, repeats=1, instances=instances)
    async with server:
        prefill, decode = await measure_server(f"http://127.0.0.1:{port}", plan)
        await fake.all_closed()
    assert [one.tokens for one in prefill] == [8, 16]
    assert [one.batch for one in decode] == [1, 2]
    assert sorted(fake.places.items()) == ([] if instances == 1 else [("0", 6), ("1", 6), ("2", 6)])
    assert all(one.first_token_ms >= 14 for one in prefill)
    assert all(one.step_ms >= 4.5 for one in decode)


async def test_one_instance_of_several_gets_all_of_each_batch(tmp_path: Path) -> None:
    row = {"id": "i0", "state": "running", "total_blocks": 64, "block_tokens": 32}
    fake = FakeServer(models=json.dumps({"data": [{"id": "tiny"}], "instances": [row, row | {"id": "i1"}]}))
    server = await asyncio.start_server(fake.answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    plan = ("--prompts", "8,16", "--batches", "1,2", "--contexts", "8", "--output-tokens", "12", "--repeats", "1")
    async with server:
        words = ["profile", "--url", url, "--out", str(tmp_path / "p.toml"), *plan, "--instances", "1"]
        assert await asyncio.to_thread(main, words) == 0
        await fake.all_closed()
    assert fake.places == {"0": 6}


OK = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("fake", "said"),
    [
        (FakeServer(b"HTTP/1.1 400 Bad\r\nconnection: close\r\n\r\ntoo long"), "HTTP 400: too long"),
        (FakeServer(b""), "127.0.0.1"),
        (FakeServer(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n"), "127.0.0.1"),
        (FakeServer(OK + b'data: {"error": "out of memory"}\n\n'), "out of memory"),
        (FakeServer(OK + b"data: not JSON\n\n"), "malformed"),
        (FakeServer(OK + b"data: [1]\n\n"), "cannot be measured"),
        (FakeServer(OK + b"data: [DONE]\n\n"), "without a token"),
        (FakeServer(models='{"data": 1}'), "cannot be measured"),
        (FakeServer(models="[]"), "cannot be measured"),
    ],
    ids=[
        "refuses",
        "hangs up",
        "is cut off",
        "fails",
        "no JSON",
        "a list",
        "no token",
        "no models",
        "a list of models",
    ],
)
async def test_a_server_that_cannot_be_measured_is_one_sentence(fake: FakeServer, said: str) -> None:
    """Whichever of many streams met it."""
    server = await asyncio.start_server(fake.answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        with pytest.raises(ServerRefused, match=said):
            await measure_server(f"http://127.0.0.1:{port}", Plan(instances=2))
        await fake.all_closed()


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"total_blocks": 0, "block_tokens": 0}, *[{"total_blocks": 64, "block_tokens": 32}] * 3], Told(64, 32, 0, 3)),
        ([{"total_blocks": 64, "block_tokens": 32, "state_blocks": 2}], Told(64, 32, 2, 1)),
        ([], None),
        ([{"total_blocks": 64}], None),
    ],
)
async def test_the_server_is_asked_for_its_cache(rows: list[dict[str, int]], told: Told | None) -> None:
    body = json.dumps({"instances": [{"id": "i0", "state": "running"} | row for row in rows]}).encode()

    async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(tell, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        if told is None:
            with pytest.raises(UsageError, match="give --blocks and --block-tokens"):
                await ask_server(url, None)
        else:
            assert await ask_server(url, None) == told


@pytest.mark.parametrize("words", [["--blocks", "100", "--block-tokens", "16"], []])
def test_a_server_that_is_not_there_is_one_sentence(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", "--url", "http://127.0.0.1:9", "--out", str(tmp_path / "p.toml"), *words]) == 1
    said = capsys.readouterr().err
    assert "127.0.0.1:9" in said
    assert "does not tell" not in said


@pytest.mark.parametrize("out", [".", "nowhere/p.toml"])
def test_what_cannot_be_written_is_said_before_anything_is_measured(
    out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", "--url", "http://127.0.0.1:9", "--out", str(tmp_path / out)]) == 2
    assert "Cannot write a file at --out" in capsys.readouterr().err


MANY_BLOCKS = ["--blocks", "100", "--block-tokens", "16"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--blocks", "0", "--block-tokens", "16"], "total_blocks"),
        (["--blocks", "9", "--block-tokens", "0"], "block_tokens"),
        ([*MANY_BLOCKS, "--state-blocks", "100"], "state_blocks"),
        ([*MANY_BLOCKS, "--block-bytes", "0"], "block_bytes"),
        *[([*MANY_BLOCKS, "--gigabytes-per-s", each], "gigabytes_per_s") for each in ("0", "nan", "inf")],
        ([*MANY_BLOCKS, "--max-num-seqs", "0"], "max_num_seqs"),
        ([*MANY_BLOCKS, "--max-num-batched-tokens", "-1"], "max_num_batched_tokens"),
        ([*MANY_BLOCKS, "--prompts", "16"], "two lengths"),
        ([*MANY_BLOCKS, "--batches", "4,4"], "two sizes"),
        ([*MANY_BLOCKS, "--name", "a\rb"], "--name"),
        ([*MANY_BLOCKS, "--name", "\udc80"], "--name"),
    ],
)
def test_what_no_profile_can_have_is_said_before_anything_is_measured(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", "--url", "http://127.0.0.1:9", "--out", str(tmp_path / "p.toml"), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_profile_whose_words_have_any_characters_comes_back(tmp_path: Path) -> None:
    words = "".join(map(chr, range(0x100))) + '\U0001f600 \u2028 """'
    profile = replace(fit(*samples(), UNSEEN, "mine", "made up"), origin=words)
    write_profile(profile, tmp_path / "mine.toml")
    assert load_profile(str(tmp_path / "mine.toml")) == profile


def test_a_profile_that_was_fitted_can_be_simulated(tmp_path: Path) -> None:
    write_profile(fit(*samples(), UNSEEN, "mine", "made up"), tmp_path / "mine.toml")
    assert load_profile(str(tmp_path / "mine.toml")).name == "mine"
    words = ["simulate", "--workload", "S-S?rate=1&requests=20&scale=0.1", "--instances", "1"]
    assert main([*words, "--profile", str(tmp_path / "mine.toml"), "--out", str(tmp_path / "out")]) == 0
