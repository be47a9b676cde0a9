# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The coupling list: what a new vLLM release must still offer."""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request

from benchmarks.program_sched.scheduler_harness import SchedulerHarness
from vllm_program_sched import compat


@pytest.mark.parametrize("name", sorted(compat.SCHEDULER_METHODS))
@pytest.mark.parametrize("base", [compat.Scheduler, compat.AsyncScheduler])
def test_scheduler_method_keeps_the_parameters_we_use(base: type, name: str) -> None:
    parameters = inspect.signature(getattr(base, name)).parameters
    wanted = compat.SCHEDULER_METHODS[name]
    assert tuple(parameters)[: len(wanted)] == wanted


def test_scheduler_and_requests_have_the_attributes_we_use(model_path: str) -> None:
    harness = SchedulerHarness(model_path, scheduler_cls=None)
    missing = [
        name
        for name in compat.SCHEDULER_ATTRIBUTES
        if not hasattr(harness.scheduler, name)
    ]
    request = harness.add("r", [1, 2, 3], 2)
    missing += [
        name for name in compat.REQUEST_ATTRIBUTES if not hasattr(request, name)
    ]
    output = harness.step()
    missing += [name for name in compat.OUTPUT_FIELDS if not hasattr(output, name)]
    assert not missing
    assert output.scheduled_new_reqs[0].req_id == "r"
    assert output.scheduled_cached_reqs.resumed_req_ids == set()
    harness.drain()


def test_queue_interface_is_what_we_implement() -> None:
    from vllm_program_sched.program_queue import ProgramRequestQueue

    assert RequestQueue.__abstractmethods__ == {
        "add_request",
        "pop_request",
        "peek_request",
        "prepend_request",
        "prepend_requests",
        "remove_request",
        "remove_requests",
        "__bool__",
        "__len__",
        "__iter__",
    }
    assert not ProgramRequestQueue.__abstractmethods__


def test_engine_core_calls_an_attribute_by_name() -> None:
    """The admin route relies on the utility channel reaching the scheduler."""
    from vllm.v1.engine.core import EngineCoreProc

    source = inspect.getsource(EngineCoreProc._handle_client_request)
    assert "getattr(self, method_name)" in source


def test_only_the_named_modules_import_vllm() -> None:
    """Algorithms stay free of vLLM: they can move upstream or into a simulator."""
    folder = Path(compat.__file__).parent
    importing = {
        path.name
        for path in folder.glob("*.py")
        if re.search(r"^\s*(from|import) vllm[. ]", path.read_text(), re.MULTILINE)
    }
    assert importing <= {
        "__init__.py",
        "activation.py",
        "compat.py",
        "middleware.py",
        "metrics_collector.py",
        "programs_api.py",
    }


def test_request_still_takes_what_the_harness_gives() -> None:
    parameters = inspect.signature(Request.__init__).parameters
    assert {"priority", "session_id", "block_hasher"} <= set(parameters)
    assert dataclasses.is_dataclass(compat.SchedulerOutput)
