"""Two processes push as one: the first of them alone, and all tell where a push fails, and go on."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from hf_freeze.training.card import TIMELINE_FILE
from hf_freeze.training.checkpoint import STATE_FILE
from tests import hub_client, hub_server, tiny_run
from tests.distributed.launching import NUM_PROCESSES, start

WORKER = Path(__file__).with_name("pushing_run.py")


@pytest.mark.parametrize("backend", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_one_process_pushes_and_none_hangs_where_it_fails(tmp_path: Path, backend: str) -> None:
    model = tiny_run.write_model(tmp_path / "tiny")
    with hub_server.serve() as hub:
        hub.drop["/reader/taken/commit/main"] = 1  # of the first save
        hub.statuses["/reader/refused/commit/main"] = 507
        task = {"backend": backend, "num_processes": NUM_PROCESSES, "folder": str(tmp_path), "model": str(model)}
        printed = start(WORKER, task, environment=hub.environment(tmp_path / "home"))
        first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(NUM_PROCESSES))
        made = [request for request in hub.requests if request.startswith("POST /api/repos/create")]
        assert len(made) == 3, "each repo is made once"
        assert hub.messages("reader/taken") == ["Training in progress, step 2", "End of training"]
        commit = hub.repos["reader/taken"].branches["main"][-1]
        assert first["taken"] == {"steps": 2, "address": f"{hub.endpoint}/reader/taken/commit/{commit.oid}"}
        assert {"README.md", TIMELINE_FILE, f"last-checkpoint/{STATE_FILE}"} <= commit.files.keys()
        folder = tmp_path / "refused"
        again = f"`{shlex.join(['hf-freeze', 'push', str(folder), 'reader/refused'])}`"
        assert first["refused"] == {
            "error": f"repo: {hub.endpoint} answered with status 507; got 'reader/refused'. Wait until it answers. "
            f"The run in '{folder}' is intact; when it is done, {again} pushes it.",
        }
        assert second["refused"] == first["refused"]
        assert second["taken"] == {"steps": 2, "address": None}
        denied = (
            "repo: your token may not write to this repo; got 'someone/model'. Use a token with write access, or "
            "another owner. Then start again, or train with push_to_hub off and push the run when it is done."
        )
        assert first["someone/model"] == second["someone/model"] == {"error": denied}
        assert f"repo: the connection to {hub.endpoint} failed (RemoteProtocolError); got 'reader/taken'." in printed
        (logits,), _ = hub_client.ask(hub, tmp_path / "second", "load", [["reader/taken", {}]])
        assert len(logits) == 2
    for repo in ("taken", "refused"):
        assert list((tmp_path / repo).glob("_push-*")) == []
