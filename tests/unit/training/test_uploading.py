"""What stops a push is told as what it is: the Hub, the network, a file on this machine, or a bug."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hf_freeze.errors import ConfigError, ShareError
from hf_freeze.training.uploading import check_repo_id, errors_in_words, pushed_files


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.json", b"{"), ("hf_freeze.yaml", b"a: ["), ("README.md", b"\xff"), ("config.json", b"\xff")],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        pushed_files(tmp_path, "reader/model")
    assert re.fullmatch(
        rf"{re.escape(str(tmp_path / name))}: this file is read before it is pushed, and it is damaged; got the error "
        r"['\"].{10,}['\"]\. Nothing was pushed\. Save the model again, or mend the file\.",
        str(caught.value),
    )


def told(error: Exception, cause: Exception | None = None) -> str:
    with pytest.raises(ShareError) as caught, errors_in_words("reader/model", remedy="The run is intact."):
        raise error from cause
    assert caught.value.__cause__ is error
    return str(caught.value)


def test_a_file_that_cannot_be_read_is_no_fault_of_the_network(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as gone:
        (tmp_path / "gone").read_bytes()
    expected = (
        f"repo: a file cannot be read ({gone.value}); got 'reader/model'. Look after that file. The run is intact."
    )
    assert told(gone.value) == told(RuntimeError("Error while uploading"), gone.value) == expected


def test_what_the_client_wraps_is_told_as_its_cause() -> None:
    message = told(RuntimeError("Error while uploading 'model.safetensors' to the Hub."), ConnectionResetError())
    assert re.fullmatch(
        r"repo: the connection to http\S+ failed \(ConnectionResetError\); got 'reader/model'\. Look after the "
        r"network\. The run is intact\.",
        message,
    )


def test_an_upload_that_fails_for_another_reason_tells_it() -> None:
    assert re.fullmatch(
        r"repo: the upload to http\S+ failed \(Data processing error: quota\); got 'reader/model'\. Try again\. The "
        r"run is intact\.",
        told(RuntimeError("Data processing error: quota.")),
    )


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError("No space left on device"), KeyError("a bug")])
def test_what_has_nothing_to_do_with_the_hub_stays_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, errors_in_words("reader/model", remedy="The run is intact."):
        raise error
    assert caught.value is error


def test_a_branch_that_no_repo_can_have_is_no_bug() -> None:
    with pytest.raises(ConfigError) as caught:
        check_repo_id("a/b/c")
    cause = caught.value.__cause__
    assert isinstance(cause, Exception)
    assert "the Hub refuses what is pushed (Repo id must be" in told(cause)
