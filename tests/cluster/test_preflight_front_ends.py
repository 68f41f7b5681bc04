"""What one front end would keep for itself is refused when there are several."""

from __future__ import annotations

import pytest

from llumnix.cluster.preflight import check_nothing_is_kept_by_one_front_end
from llumnix.errors import UsageError

NAMES = ("VLLM_ENABLE_RESPONSES_API_STORE", "SAGEMAKER_ENABLE_STATEFUL_SESSIONS")


@pytest.mark.parametrize("name", NAMES)
def test_switched_on(name: str) -> None:
    for value in ("1", "true", "True"):
        with pytest.raises(UsageError, match=f"{name} .* use one front end"):
            check_nothing_is_kept_by_one_front_end({name: value})


@pytest.mark.parametrize("name", NAMES)
def test_switched_off(name: str) -> None:
    check_nothing_is_kept_by_one_front_end({})
    for value in ("", "0", "false"):
        check_nothing_is_kept_by_one_front_end({name: value})
