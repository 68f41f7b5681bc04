"""As tests/engine: vLLM is imported before pytest makes errors of warnings. vLLM's config is that of a GPU."""

from __future__ import annotations

import contextlib
import warnings

with warnings.catch_warnings(), contextlib.suppress(ImportError):  # without vLLM its tests are skipped
    warnings.simplefilter("ignore")
    import llumnix.engine.vllm.instance.core  # noqa: F401
