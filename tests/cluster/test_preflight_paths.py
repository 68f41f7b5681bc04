"""Every flag of `llumnix serve` that names a file or a folder, with whatever may be there instead."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from llumnix.cluster.preflight_paths import LOG_CONFIG, check_certificates, check_engine_paths, check_model
from llumnix.errors import UsageError
from llumnix.flags import parse_serve
from llumnix.vllm_words import vllm_flags
from odd_paths import odd_path

pytestmark = pytest.mark.io

FILES = ("--chat-template", "--tool-parser-plugin", "--reasoning-parser-plugin", "--log-config-file")
CERTIFICATES = ("--ssl-certfile", "--ssl-keyfile", "--ssl-ca-certs")
MAY_BE_ON_THE_HUB = ("--tokenizer", "--hf-config-path", "--generation-config", "--spec-model")

LEFT_TO_VLLM = {
    "--allow-credentials": "no path",
    "--root-path": "a part of URLs",
    "--download-dir": "is made",
    "--mm-encoder-fp8-scale-path": "read with the weights, by models that few have",
    "--mm-encoder-fp8-scale-save-path": "written in the end",
}
NAMES_A_PATH = re.compile(r".*(-path|-file|certfile|keyfile|ca-certs|-dir|-plugin|-template)")


def test_every_flag_whose_name_speaks_of_a_path_is_looked_at_or_left_to_vllm_for_a_reason() -> None:
    speak = {flag.name for flag in vllm_flags().values() if NAMES_A_PATH.fullmatch(flag.name)}
    others = {"--io-processor-plugin", "--config"}  # a module; read by ourselves
    known = {*FILES, *CERTIFICATES, *MAY_BE_ON_THE_HUB, *LEFT_TO_VLLM, *others, "--allowed-local-media-path"}
    known |= {"--trust-request-chat-template"}  # no path
    assert speak - known == set()


def there(folder: Path, situation: str) -> Path:
    return odd_path(folder / "named.py", situation)


EVERY_FILE = {
    "missing": "no such file or directory",
    "a folder": "it is a folder",
    "a pipe": "it is a pipe or a device, and several processes read it",
    "below a file": "not a directory",
    "too long": "file name too long",
}


@pytest.mark.parametrize("situation", [*EVERY_FILE, "binary", "not UTF-8"])
@pytest.mark.parametrize("flag", FILES)
def test_file_that_cannot_be_read_is_told_before_anything_starts(tmp_path: Path, flag: str, situation: str) -> None:
    path = there(tmp_path, situation)
    arguments = parse_serve([f"{flag}={path}"])
    said = f"cannot be read: {EVERY_FILE[situation]}" if situation in EVERY_FILE else "is no text: 'utf-8' codec"
    with pytest.raises(UsageError, match=f"^{flag} {path} {said}"):
        check_engine_paths(arguments, "")


@pytest.mark.parametrize("flag", FILES)
def test_file_that_we_may_not_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    path = there(tmp_path, "binary")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UsageError, match=f"^{flag} {path} cannot be read: permission denied"):
        check_engine_paths(parse_serve([f"{flag}={path}"]), "")


@pytest.mark.parametrize(
    ("content", "why"),
    [("", "is not JSON: Expecting value: line 1"), ("[1]", "must hold an object"), ("a: 1", "is not JSON"), ("{}", "")],
)
@pytest.mark.parametrize("by", ["--log-config-file", LOG_CONFIG])
def test_log_config_that_is_none_is_told(tmp_path: Path, by: str, content: str, why: str) -> None:
    path = tmp_path / "log.json"
    path.write_text(content)
    flags = [f"{by}={path}"] if by.startswith("--") else []
    variable = "" if flags else str(path)
    if not why:
        check_engine_paths(parse_serve(flags), variable)
        return
    with pytest.raises(UsageError, match=f"^{by} {path} {why}"):
        check_engine_paths(parse_serve(flags), variable)


@pytest.mark.parametrize(
    "words",
    [
        "--chat-template={{a}}",
        "--chat-template=one_of_vllm.jinja",
        "--tool-parser-plugin=package.module",
        "--ssl-ca-certs=/no",
    ],
)
def test_what_is_no_path_or_is_not_read_is_left_alone(words: str) -> None:
    check_engine_paths(parse_serve([words]), "")


@pytest.mark.parametrize("situation", ["missing", "binary"])
def test_folder_of_media_that_is_none_is_told(tmp_path: Path, situation: str) -> None:
    path = there(tmp_path, situation)
    with pytest.raises(UsageError, match=f"^--allowed-local-media-path {path} is no folder"):
        check_engine_paths(parse_serve([f"--allowed-local-media-path={path}"]), "")


@pytest.mark.parametrize("flag", MAY_BE_ON_THE_HUB)
def test_path_at_which_there_is_nothing_is_told_and_a_name_on_the_hub_is_not(flag: str) -> None:
    with pytest.raises(UsageError, match=f"^{flag}: there is nothing at ./nowhere"):
        check_engine_paths(parse_serve([f"{flag}=./nowhere"]), "")
    check_engine_paths(parse_serve([f"{flag}=some/name"]), "")
    check_engine_paths(parse_serve([f"{flag}=./nowhere", "--launcher", "ray"]), "")


@pytest.mark.parametrize("words", ["a=org/name b=./nowhere", '{"name":"b","path":"./nowhere"}'])
def test_adapter_of_which_there_is_nothing_is_told(words: str) -> None:
    with pytest.raises(UsageError, match=r"^--lora-modules: there is nothing at ./nowhere"):
        check_engine_paths(parse_serve(["--enable-lora", "--lora-modules", *words.split()]), "")
    check_engine_paths(parse_serve(["--lora-modules", "a=org/name", "--response-role", "./nowhere=x"]), "")


@pytest.mark.parametrize("words", ["a=~/adapter", '{"name":"a","path":"~/adapter"}'])
def test_adapter_at_home_is_found_as_vllm_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = parse_serve(["--enable-lora", "--lora-modules", words])
    with pytest.raises(UsageError, match=f"^--lora-modules: there is nothing at {tmp_path}/adapter"):
        check_engine_paths(arguments, "")
    (tmp_path / "adapter").mkdir()
    check_engine_paths(arguments, "")


def test_model_in_the_store_of_a_cloud_is_left_to_vllm() -> None:
    check_model("s3://bucket/some/model")
    check_engine_paths(parse_serve(["--tokenizer=gs://bucket/some/model"]), "")


@pytest.mark.parametrize("situation", ["a pipe", "missing", "a folder"])
def test_model_that_is_none_is_told(tmp_path: Path, situation: str) -> None:
    path = there(tmp_path, situation)
    with pytest.raises(UsageError, match=str(path)):
        check_model(str(path))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tls")
    files = {flag: folder / f"{flag}.pem" for flag in CERTIFICATES}
    key = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-keyout",
        str(files["--ssl-keyfile"]),
    ]
    made = ["-days", "2", "-subj", "/CN=127.0.0.1", "-out", str(files["--ssl-certfile"])]
    subprocess.run(["openssl", "req", "-x509", *key, *made], check=True, capture_output=True)
    files["--ssl-ca-certs"].write_bytes(files["--ssl-certfile"].read_bytes())
    return files


@pytest.mark.parametrize("situation", [*EVERY_FILE, "binary", "empty", "whole"])
@pytest.mark.parametrize("lacking", CERTIFICATES)
def test_certificate_that_cannot_be_used_is_told(
    tmp_path: Path, pair: dict[str, Path], lacking: str, situation: str
) -> None:
    files = pair if situation == "whole" else {**pair, lacking: there(tmp_path, situation)}
    if situation == "empty":
        files[lacking].touch()
    arguments = parse_serve([f"{flag}={file}" for flag, file in files.items()])
    if situation == "whole":
        check_certificates(arguments)
        return
    with pytest.raises(UsageError, match=rf"{lacking} {files[lacking]}"):
        check_certificates(arguments)


def test_key_that_needs_a_password_asks_nobody_for_it(tmp_path: Path, pair: dict[str, Path]) -> None:
    locked = tmp_path / "key.pem"
    words = ["openssl", "pkcs8", "-topk8", "-passout", "pass:secret", "-in", pair["--ssl-keyfile"], "-out", locked]
    subprocess.run(list(map(str, words)), check=True, capture_output=True)
    flags = ["--ssl-certfile", str(pair["--ssl-certfile"]), "--ssl-keyfile", str(locked)]
    with pytest.raises(UsageError, match=rf"^--ssl-certfile .* and --ssl-keyfile {locked} are no pair"):
        check_certificates(parse_serve(flags))


def test_key_without_a_certificate_is_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^--ssl-keyfile is the key of a certificate, which --ssl-certfile names"):
        check_certificates(parse_serve(["--ssl-keyfile", str(tmp_path / "key.pem")]))
