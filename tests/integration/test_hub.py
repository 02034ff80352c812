"""Pushing to a Hub on this machine with the real client, and loading from it in a fresh cache."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_freeze.errors import ShareError
from hf_freeze.sharing.hub import push_run
from hf_freeze.training import FreezeTrainer
from hf_freeze.training.card import TIMELINE_FILE
from hf_freeze.training.checkpoint import STATE_FILE, WEIGHTS_FILE
from hf_freeze.training.manifest import MANIFEST_FILE, is_complete
from tests import hub_client, hub_server, tiny_run
from tests.hub_server import READ_TOKEN, TOKEN, Hub, Repo
from tests.unit.training.runs import arguments, rows

LORA = {"peft_type": "LORA", "target_modules": "all-linear", "r": 2, "blocks": {"last": 1}}

NO_NAME = (
    "repo: this is not the name of a repo; got {!r}. A name is NAME or OWNER/NAME, of letters, digits, '-', '_' and "
    "'.', without '--' or '..'. Choose such a name."
)
MAY_NOT = ("your token may not write to this repo", "Use a token with write access, or another owner.")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server.serve() as served:
        yield served


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.write_model(tmp_path_factory.mktemp("base") / "tiny")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(hub: Hub, run: Path, repo: str, what: str, do: str, options: str = "") -> list[str]:
    intact = f"The run in '{run}' is intact. Then run `hf-freeze push {run} {repo}{options}` again."
    return ["ShareError", f"repo: {what}; got '{repo}'. {do} {intact}".replace("<HUB>", hub.endpoint)]


def test_every_strategy_pushes_a_model_that_loads_in_a_fresh_cache(hub: Hub, model: Path, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1, "hub_always_push": True}
    cases: list[dict[str, Any]] = [
        {"hub_strategy": "end", "hub_private_repo": True, **saving},
        {"hub_strategy": "every_save", "hub_revision": "trial", **saving},
        {"hub_strategy": "checkpoint", "adapters": [LORA], **saving, "save_total_limit": 1},
        {"hub_strategy": "all_checkpoints", "freeze": {"blocks": {"first": 2}}, **saving},
    ]
    names = ["end", "every", "adapters", "all"]
    for case, name in zip(cases, names, strict=True):
        case.update(hub_model_id=name, output_dir=tmp_path / "runs" / name)
    hub.repos["reader/adapters"] = Repo()
    hub.files("reader/adapters").update({"last-checkpoint/model.safetensors": b"stale", "images/a.png": b"another's"})
    trained, printed = hub_client.ask(hub, tmp_path / "first", "train", model, cases)
    hub.repos["reader/tiny"] = Repo()
    hub.files("reader/tiny").update(contents(model))
    config = json.loads(hub.files("reader/adapters")["adapter_config.json"])
    assert config["base_model_name_or_path"] == "tiny", "a folder of this machine says nothing elsewhere"
    hub.files("reader/adapters")["adapter_config.json"] = json.dumps(
        {**config, "base_model_name_or_path": "reader/tiny"}
    ).encode()
    repos = [["reader/end", {}], ["reader/every", {"revision": "trial"}], ["reader/adapters", {}], ["reader/all", {}]]
    loaded, _ = hub_client.ask(hub, tmp_path / "second", "load", repos)
    assert loaded == trained

    progress = ["Training in progress, step 1", "Training in progress, step 2"]
    assert hub.messages("reader/end") == ["End of training"]
    assert hub.messages("reader/every", "trial") == [*progress, "End of training"]
    assert hub.repos["reader/end"].private
    assert not hub.repos["reader/every"].private
    plain, card = {"hf_freeze_plan.json", *contents(model)}, {"README.md", TIMELINE_FILE}
    assert hub.files("reader/end").keys() == plain | card
    assert all(commit.files.keys() >= plain for commit in hub.repos["reader/every"].branches["trial"][1:])
    text = hub.files("reader/adapters")["README.md"].decode()
    assert "\n# adapters\n\n`tiny` fine-tuned for text-classification with hf_freeze: " in text
    assert '\nrepo = "reader/adapters"  # this folder, or its repo on the Hub\n' in text
    small = {MANIFEST_FILE, STATE_FILE, WEIGHTS_FILE, "optimizer.pt", "rng_state.pth", "scheduler.pt"}
    for repo, checkpoints in (("adapters", ["last-checkpoint"]), ("all", ["checkpoint-1", "checkpoint-2"])):
        there = {name for name in hub.files(f"reader/{repo}") if "/" in name}
        expected = {f"{folder}/{name}" for folder in checkpoints for name in (*small, "trainer_state.json")}
        assert there - {"images/a.png"} == expected
    assert hub.files("reader/adapters")["images/a.png"] == b"another's"
    assert "model.safetensors" not in hub.files("reader/adapters")
    pulled = tmp_path / "pulled"
    pulled.mkdir()
    for name in hub.files("reader/adapters"):
        if name.startswith("last-checkpoint/"):
            (pulled / Path(name).name).write_bytes(hub.files("reader/adapters")[name])
    assert is_complete(pulled)
    resumed = FreezeTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(model),
        args=arguments(tmp_path / "resumed", max_steps=2),
        train_dataset=rows(),
        adapters=[LORA],
    )
    resumed.train(resume_from_checkpoint=str(pulled))  # It was at the last step: one more has the learning rate 0.
    assert hub_client.logits(resumed.model.eval(), AutoTokenizer.from_pretrained(model)) == trained[2]
    for name in names:
        assert list((tmp_path / "runs" / name).glob("_push-*")) == []
        commits = [commit for branch in hub.repos[f"reader/{name}"].branches.values() for commit in branch]
        assert not any(TOKEN.encode() in content for commit in commits for content in commit.files.values())
    assert str(tmp_path) not in str(hub.files("reader/adapters")["README.md"])
    assert TOKEN not in printed


def test_what_fails_is_said_and_training_goes_on(hub: Hub, model: Path, tmp_path: Path) -> None:
    hub.drop["/reader/run/commit/main"] = 1
    run = tmp_path / "run"
    cases = [
        {"hub_strategy": "every_save", "save_strategy": "steps", "save_steps": 2, "output_dir": run},
        {"output_dir": tmp_path / "other", "hub_model_id": "a..b"},
        {"output_dir": tmp_path / "other", "hub_model_id": "someone/model"},
        {"output_dir": tmp_path / "late", "hub_model_id": "someone/model", "push_to_hub": False},
    ]
    (trained, *errors, _, late), printed = hub_client.ask(hub, tmp_path / "home", "train", model, cases)
    assert len(trained) == 2
    assert (
        f"repo: the connection to {hub.endpoint} failed (RemoteProtocolError); got 'reader/run'. Look after the "
        f"network. The run in '{run}' is intact; when it is done, `hf-freeze push {run} reader/run` pushes it."
    ) in printed
    assert hub.messages("reader/run") == ["End of training"]
    later = "Then start again, or train with push_to_hub off and push the run when it is done."
    assert errors == [
        ["ConfigError", NO_NAME.format("a..b")],
        ["ShareError", f"repo: {MAY_NOT[0]}; got 'someone/model'. {MAY_NOT[1]} {later}"],
    ]
    push = f"when it is done, `hf-freeze push {tmp_path / 'late'} someone/model` pushes it."
    intact = f"The run in '{tmp_path / 'late'}' is intact; {push}"
    assert late == ["ShareError", f"repo: {MAY_NOT[0]}; got 'someone/model'. {MAY_NOT[1]} {intact}"]
    assert (tmp_path / "late" / "model.safetensors").is_file(), "saved before the Hub is asked"


def test_push_takes_what_is_needed_and_replaces_what_was_there(hub: Hub, model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name, content in contents(model).items():
        (run / name).write_bytes(content)
    secret = ["training_args.bin", "optimizer.pt", "trainer_state.json", "events.out.tfevents.1", "notes.md", ".env"]
    for name in secret:
        (run / name).write_bytes(b"private")
    (run / "checkpoint-1").mkdir()
    (run / "checkpoint-1" / WEIGHTS_FILE).write_bytes(b"private")
    (run / "hf_freeze.yaml").write_text(
        "model: {name_or_path: /home/alice/models/tiny}\n"
        "data: {load_dataset: {path: csv, data_files: 'https://alice:pw@example.org/rows.csv'}}\n"
    )
    metadata = [
        "---",
        "base_model: /home/alice/tiny",
        "tags:",
        "- base_model:adapter:/home/alice/tiny",
        "- lora",
        "---",
    ]
    (run / "README.md").write_text("\n".join([*metadata, "```python", 'repo = "run"  # this folder', "```", ""]))
    hub.repos["reader/model"] = Repo()
    hub.repos["reader/model"].branches["main"][-1].files.update(
        {"adapter_config.json": b"{}", "adapter_model.safetensors": b"", "pytorch_model.bin": b"", "LICENSE": b"MIT"}
    )
    done = hub_client.command(hub, tmp_path / "home", "push", run, "model")
    assert (done.returncode, done.stderr) == (0, "")
    pushed = sorted(["README.md", "hf_freeze.yaml", *contents(model)])
    made = hub.repos["reader/model"].branches["main"][-1]
    address = f"{hub.endpoint}/reader/model/commit/{made.oid}"
    assert done.stdout == f"Pushed {', '.join(pushed)} to reader/model:\n{address}\n"
    assert hub.files("reader/model").keys() == {*pushed, "LICENSE"}
    assert hub.files("reader/model")["model.safetensors"] == (model / "model.safetensors").read_bytes()
    assert hub.files("reader/model")["hf_freeze.yaml"].decode() == (
        "model:\n  name_or_path: tiny\n"
        "data:\n  load_dataset:\n    path: csv\n    data_files: https://example.org/rows.csv\n"
    )
    assert hub.files("reader/model")["README.md"].decode().splitlines() == [
        *("---", "tags:", "- lora", "---"),
        *("```python", 'repo = "reader/model"  # this folder', "```"),
    ]


def test_push_makes_a_private_repo_and_a_branch_where_that_is_asked_for(hub: Hub, model: Path, tmp_path: Path) -> None:
    done = hub_client.command(hub, tmp_path / "home", "push", model, "reader/other", "--private", "--revision", "v1")
    assert (done.returncode, done.stderr) == (0, "")
    assert hub.repos["reader/other"].private
    assert hub.files("reader/other", "v1").keys() == contents(model).keys()
    assert hub.files("reader/other") == {}


def test_what_the_hub_refuses_is_said_and_the_run_stays_as_it_was(hub: Hub, model: Path, tmp_path: Path) -> None:
    before = contents(model)
    hub.repos["reader/model"] = Repo()
    hub.drop.update({"/repos/create": 1, "/commit/main": 1, "/preupload/main": 1})
    hub.statuses["/preupload/broken"] = 507
    (tmp_path / "empty").mkdir()
    wrong, large, damaged = (Path(shutil.copytree(model, tmp_path / name)) for name in ("wrong", "large", "damaged"))
    (wrong / "README.md").write_text("---\nbase_model: my model\n---\n")
    safetensors.torch.save_file({"large": torch.zeros(2)}, large / "model.safetensors")
    refused_object = f"/objects/{hashlib.sha256((large / 'model.safetensors').read_bytes()).hexdigest()}"
    hub.statuses[refused_object] = 507
    (damaged / "config.json").write_text("{")
    to_model = {"folder": model, "repo_id": "model"}
    calls = [
        {**to_model, "repo_id": "../model"},
        {**to_model, "repo_id": "my model"},
        {"folder": tmp_path / "empty", "repo_id": "model"},
        {"folder": tmp_path / "nowhere", "repo_id": "model"},
        to_model,
        to_model,
        {**to_model, "repo_id": "someone/model"},
        {**to_model, "token": READ_TOKEN},
        {**to_model, "token": "hf_unknown"},
        {**to_model, "token": ""},
        {"folder": wrong, "repo_id": "model"},
        {**to_model, "revision": "broken"},
        {"folder": large, "repo_id": "model"},
        {"folder": damaged, "repo_id": "model"},
        to_model,
    ]
    results, printed = hub_client.ask(hub, tmp_path / "home", "push", calls)
    finished = (
        "Name the folder that a run was saved in; a run that was interrupted is finished with "
        "training.resume_from_checkpoint=true."
    )
    no_model = "RUN: there is no model of a finished run; got"
    dropped = ("the connection to <HUB> failed (RemoteProtocolError)", "Look after the network.")
    damage = (
        f"{damaged / 'config.json'}: this file is read before it is pushed, and it is damaged; got the error "
        "'Expecting property name enclosed in double quotes: line 1 column 2 (char 1)'. Nothing was pushed. Save the "
        "model again, or mend the file."
    )
    metadata = (
        "the Hub refuses what is pushed (Invalid metadata in README.md. - base_model must be the id of a repo; got "
        "'my model')"
    )
    log_in = "Run `hf auth login`, or set HF_TOKEN."
    assert results == [
        ["ConfigError", NO_NAME.format("../model")],
        ["ConfigError", NO_NAME.format("my model")],
        ["ConfigError", f"{no_model} '{tmp_path / 'empty'}'. It holds nothing. {finished}"],
        ["ConfigError", f"{no_model} '{tmp_path / 'nowhere'}'. There is no such folder. {finished}"],
        refused(hub, model, "model", *dropped),
        refused(hub, model, "model", *dropped),
        refused(hub, model, "someone/model", *MAY_NOT),
        refused(hub, model, "model", *MAY_NOT),
        refused(hub, model, "model", "<HUB> does not accept your token", "Run `hf auth login` again, or set HF_TOKEN."),
        refused(hub, model, "model", "<HUB> asks for a token, and none is known", log_in),
        refused(hub, wrong, "model", metadata, "Change what it names."),
        refused(hub, model, "model", "<HUB> answered with status 507", "Wait until it answers.", " --revision broken"),
        refused(hub, large, "model", "<HUB> answered with status 507", "Wait until it answers."),
        ["ConfigError", damage],
        sorted(contents(model)),
    ]
    assert contents(model) == before
    assert hub.messages("reader/model") == ["Push a run of hf_freeze"]
    uploads = [
        request for request in hub.requests if request.startswith("PUT") and not request.endswith(refused_object)
    ]
    assert len(uploads) == 1, "what was uploaded before the connection dropped is not uploaded again"
    assert not any(token in printed for token in (TOKEN, READ_TOKEN))


def test_without_a_network_the_run_stays_and_the_message_says_how_to_go_on(model: Path, tmp_path: Path) -> None:
    hub = Hub(endpoint="http://127.0.0.1:9")  # nobody listens there
    before = contents(model)
    done = hub_client.command(hub, tmp_path / "home", "push", model, "model", "--private", "--revision", "v1")
    failed = ("the connection to <HUB> failed (ConnectError)", "Look after the network.")
    _, message = refused(hub, model, "model", *failed, " --revision v1 --private")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{message}\n")
    assert contents(model) == before


def test_a_client_that_is_kept_off_the_hub_says_so(model: Path) -> None:
    with pytest.raises(ShareError) as caught:
        push_run(str(model), "model")
    what, do = "the Hub is not asked while HF_HUB_OFFLINE is set", "Unset HF_HUB_OFFLINE."
    assert str(caught.value) == refused(Hub(), model, "model", what, do)[1]


def test_what_a_killed_push_left_behind_is_removed_by_the_next_run(hub: Hub, model: Path, tmp_path: Path) -> None:
    hub.hold = "/commit/main"
    run = tmp_path / "run"
    case = {"hub_strategy": "every_save", "save_strategy": "steps", "save_steps": 1, "output_dir": run}
    client = hub_client.start(hub, tmp_path / "home", "train", model, [case])
    assert hub.held.wait(timeout=200), client.communicate(timeout=10)
    client.kill()
    client.communicate(timeout=30)
    staged = run / "_push-1"
    assert (staged / "model.safetensors").is_file(), "the kill was in the middle of a push"
    hub.hold = None
    hub.released.set()
    (logits,), _ = hub_client.ask(hub, tmp_path / "home", "train", model, [{**case, "max_steps": 1}])
    assert len(logits) == 2
    assert hub.messages("reader/run")[-1] == "End of training"
    assert list(run.glob("_push-*")) == []


def test_a_delta_comes_back_in_a_fresh_cache_and_what_cannot_be_pulled_is_said(
    hub: Hub, model: Path, tmp_path: Path
) -> None:
    repos = {"tiny": Repo(), "gated": Repo(gated=True), "private": Repo(private=True)}
    for name, repo in repos.items():
        hub.repos[f"reader/{name}"] = repo
        hub.files(f"reader/{name}").update(contents(model))
    case = {"output_dir": tmp_path / "delta", "freeze": {"blocks": {"first": 2}}, "save": {"format": "delta"}}
    (trained,), _ = hub_client.ask(hub, tmp_path / "first", "train", "reader/tiny", [case])
    pushed = hub.files("reader/delta")
    whole = contents(model)["model.safetensors"]
    assert len(pushed["hf_freeze_delta.safetensors"]) < len(whole)
    described = json.loads(pushed["hf_freeze_delta.json"])
    commit = hub.repos["reader/tiny"].branches["main"][-1].oid
    assert (described["base"], described["revision"]) == ("reader/tiny", commit)
    calls = [
        {"repo": "reader/delta"},
        {"repo": "reader/private"},
        {"repo": "reader/private", "token": ""},
        {"repo": "reader/gated"},
        {"repo": "reader/nothing"},
        {"repo": "reader/private", "revision": "v9"},
    ]
    bases = ["reader/private", "reader/gated", "reader/nothing", "nowhere/at/all"]
    calls += [{"repo": "reader/delta", "base": base, "token": "" if "private" in base else TOKEN} for base in bases]
    (loaded, private, *errors), _ = hub_client.ask(hub, tmp_path / "second", "pull", calls)
    assert loaded == trained
    assert len(private) == 2
    answers = [
        "reader/private is not a local folder and is not a valid model identifier listed on",
        "You are trying to access a gated repo",
        "reader/nothing is not a local folder and is not a valid model identifier listed on",
        "v9 is not a valid git identifier (branch name, tag name or commit id) that exists for this model name",
    ]
    log_in = "Where it is private, log in with `hf auth login` or set HF_TOKEN."
    ask_for_access = "Ask for access on its page, and log in with `hf auth login` or set HF_TOKEN."
    may_read = "Where it is private, use a token that may read it."
    remedies = [log_in, ask_for_access, may_read, "Name a revision that the repo has."]
    for (kind, message), call, answer, remedy in zip(errors[:4], calls[2:6], answers, remedies, strict=True):
        assert kind == "ConfigError"
        begins = f"{call['repo']}: there is no folder of this name, and no such model can be read from the Hub; got the"
        assert message.startswith(begins)
        assert answer in message
        assert message.endswith(
            f". {remedy} Name the folder that a run has written, or a repository that you may read."
        )
    pass_it = "Pass the model that it was trained from as base, which is --base of a command."
    for (kind, message), base, remedy in zip(errors[4:], bases, [log_in, ask_for_access, may_read, ""], strict=True):
        assert kind == "PlanError"
        assert message.startswith(f"reader/delta: its base model {base!r} cannot be loaded; got the error ")
        assert message.endswith(f"There is no such folder here. {remedy} {pass_it}".replace("  ", " "))
    hub.drop["/model.safetensors"] = 99
    ((kind, dropped),), _ = hub_client.ask(hub, tmp_path / "third", "pull", [{"repo": "reader/delta"}])
    assert kind == "PlanError"
    assert dropped.startswith("reader/delta: its base model 'reader/tiny' cannot be loaded; got the error ")
    assert dropped.endswith(f"There is no such folder here. Look after the network. {pass_it}")
