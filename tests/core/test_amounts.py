"""What a claim asks for, in words, and whether a machine has it."""

from __future__ import annotations

import pytest

from agentmgr.core import cluster_fields
from agentmgr.core.amounts import asked, in_words, unmet
from agentmgr.errors import InvalidRequest
from agentmgr.models import ServiceConfig, ServiceSpec

LARGE = ServiceConfig(command=("x",), cpus=4, gpus=1, memory_mb=2048, resources=["licence=2"])
BIG, SMALL = {"CPU": 8.0, "GPU": 4.0, "memory": 2.0**34, "licence": 2.0}, {"CPU": 2.0}


def test_in_words() -> None:
    assert in_words(asked(LARGE)) == "1 GPU, 4 CPUs, 2048 MiB of memory and 2 licence"
    assert in_words(asked(ServiceConfig(command=("x",), gpus=0.5))) == "0.5 GPUs"
    assert asked(ServiceConfig(command=("x",))) == {}


def test_what_no_machine_has_is_named() -> None:
    assert unmet(asked(LARGE), [SMALL, BIG]) is None
    assert unmet({"GPU": 8.0}, [SMALL, BIG]) == "no machine has 8 GPUs: the most that one has is 4 GPUs"
    assert unmet({"TPU": 1.0}, [SMALL, BIG]) == "no machine has 1 TPU: none has any"
    apart = [{"CPU": 8.0}, {"GPU": 1.0}]
    assert unmet({"CPU": 4.0, "GPU": 1.0}, apart) == "no machine has 1 GPU and 4 CPUs together"
    (remark,) = cluster_fields.unmet(LARGE, [SMALL])
    assert remark.endswith("; it waits until a machine that has it comes")
    assert cluster_fields.unmet(LARGE, []) == (), "the engine has not said yet which machines there are"


@pytest.mark.parametrize(
    ("config", "why"),
    [({"gpus": 1.5}, "gpus must be a whole number"), ({"resources": ["GPU=1"]}, "gpus reserves that")],
)
def test_what_an_engine_cannot_reserve_is_refused(config: dict[str, object], why: str) -> None:
    spec = ServiceSpec("svc", ServiceConfig(command=("x",), **config))  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match=why):
        cluster_fields.check(spec, reserves=True)
    cluster_fields.check(ServiceSpec("svc", LARGE), reserves=True)
