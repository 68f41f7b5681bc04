"""A tiny random Llama, made on the spot from a seed: to try a server on a laptop, and for tests, without a download.

It talks nonsense, but varied nonsense: hundreds of different bytes, so that one wrong token is seen. Its window is
large enough for contexts of many thousand tokens. Torch is imported in a child process only.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import inspect
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from llumnix.errors import UsageError, refused_as
from llumnix.paths import expanded

_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ message['role'] }}: {{ message['content'] if message['content'] else '' }}\n"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}assistant:{%- endif -%}"
)

_ARCHITECTURE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16384,
    "initializer_range": 0.1,  # large weights and sharp logits: greedy output wanders instead of repeating itself
}
_LOGIT_SCALE = 3.0
_SEED = 1
_UNFINISHED = "tiny-unfinished-"
_LONGEST_MAKING_S = 120.0  # then whoever waits makes one of his own


def ensure(cache: Path | None = None) -> Path:
    """The model's folder, made if it is not there. Raises UsageError if that fails.

    The folder's name is a hash of the recipe, so another recipe is another model; it appears whole or not at all.
    """
    target = (cache or cache_dir()) / f"tiny-{_recipe_hash()}"
    if os.path.isdir(target):
        return target
    with refused_as(f"The tiny model cannot be written to {target.parent}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone_in(target.parent) as lock:
            if not target.is_dir():  # else somebody made it while we waited
                _make(target, lock)
    return target


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[int]:
    """Nobody else makes one there meanwhile; what those left that were killed is gone. Gives the lock's descriptor."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        if _locked(lock):
            for left in folder.glob(f"{_UNFINISHED}*"):
                shutil.rmtree(left, ignore_errors=True)
        yield lock
    finally:
        os.close(lock)


def _locked(descriptor: int) -> bool:
    """False on a file system without locks, and where somebody hangs at it."""
    until_s = time.monotonic() + _LONGEST_MAKING_S
    while time.monotonic() < until_s:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1)
        except OSError:
            return False
        else:
            return True
    return False


def _make(target: Path, lock: int) -> None:
    unfinished = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=target.parent))
    try:
        _make_in_child(unfinished, lock)
        publish(unfinished, target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _make_in_child(folder: Path, lock: int) -> None:
    """The child has the lock, too: it may go on after we were killed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "llumnix.tiny_model", str(folder)]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, pass_fds=(lock,))
    if made.returncode != 0:
        reason = (made.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UsageError(f"The tiny model could not be made: {reason}")


def publish(unfinished: Path, target: Path) -> None:
    """Gives a folder that is whole its name, unless somebody else was quicker."""
    try:
        unfinished.rename(target)
    except OSError:
        if not target.is_dir():  # else somebody else made it in the meantime, and the same
            raise


def cache_dir() -> Path:
    """Where what is made once is kept."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expanded(base) / "llumnix"


def _recipe_hash() -> str:
    return hashlib.sha256(inspect.getsource(sys.modules[__name__]).encode()).hexdigest()[:12]


def make(folder: Path) -> None:
    """Writes weights, configuration and tokenizer. Needs torch and transformers."""
    # By name, because their own types differ from version to version and nothing here depends on them.
    torch: Any = import_module("torch")
    transformers: Any = import_module("transformers")
    tokenizer = byte_tokenizer(transformers)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **_ARCHITECTURE,
    )
    torch.manual_seed(_SEED)
    model = transformers.LlamaForCausalLM(config).to(torch.float32)
    with torch.no_grad():
        model.lm_head.weight.mul_(_LOGIT_SCALE)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def byte_tokenizer(transformers: Any, special: Sequence[str] = ()) -> Any:
    """One token per byte, the two that begin and end a text, and the `special` ones: it can say everything and needs no
    training."""
    tokenizers: Any = import_module("tokenizers")
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    words = [*sorted(byte_level.alphabet()), "<s>", "</s>", *special]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    wrapped.chat_template = _CHAT_TEMPLATE
    return wrapped


if __name__ == "__main__":
    make(Path(sys.argv[1]))
