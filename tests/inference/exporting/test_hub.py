"""Pushing an exported folder to the hub. Nothing is ever sent: the hub is a fake that notes what it is asked."""

from types import SimpleNamespace

import httpx
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

from pluralign.inference.exporting import check_push, push_folder

SECRET = "hf_never_written_anywhere"


class FakeHub:
    """As much of HfApi as a push uses."""

    def __init__(self, visible=None, refusal=None):
        self.visible, self.refusal, self.asked = visible, refusal, []

    def repo_exists(self, name):
        return self.visible is not None

    def model_info(self, name):
        return SimpleNamespace(private=self.visible == "private")

    def create_repo(self, name, *, private):
        self.asked.append(("create", name, private))

    def upload_folder(self, **words):
        if self.refusal:
            raise self.refusal
        self.asked.append(("upload", words))
        return SimpleNamespace(commit_url=f"https://hub/{words['repo_id']}/commit/1")


@pytest.fixture
def folder(tmp_path):
    for name in ("pluralign.json", "config.json", "README.md"):
        (tmp_path / name).write_text("{}")
    return tmp_path


def uploads(hub):
    return [words for kind, *words in hub.asked if kind == "upload"]


def test_a_new_repository_is_private_and_gets_one_commit(folder):
    hub = FakeHub()
    assert push_folder(folder, "ann/model", api=hub) == "https://hub/ann/model/commit/1"
    assert hub.asked[0] == ("create", "ann/model", True)
    ((words,),) = uploads(hub)
    assert words["folder_path"] == folder and words["delete_patterns"] == "*"
    public = FakeHub()
    push_folder(folder, "ann/model", private=False, api=public)
    assert public.asked[0] == ("create", "ann/model", False)


def test_what_is_there_is_changed_only_when_asked(folder):
    hub = FakeHub(visible="private")
    with pytest.raises(FileExistsError, match="add --overwrite"):
        push_folder(folder, "ann/model", api=hub)
    assert not hub.asked
    push_folder(folder, "ann/model", overwrite=True, api=hub)
    assert len(uploads(hub)) == len(hub.asked) == 1


def test_a_private_push_never_lands_in_a_public_repository(folder):
    hub = FakeHub(visible="public")
    with pytest.raises(PermissionError, match="is public"):
        push_folder(folder, "ann/model", overwrite=True, api=hub)
    assert not hub.asked
    push_folder(folder, "ann/model", overwrite=True, private=False, api=hub)
    assert uploads(hub)


def test_a_refusal_of_the_hub_says_what_to_do(folder):
    request = httpx.Request("POST", "https://hub")
    refusal = HfHubHTTPError("403 Forbidden\nlong text", response=httpx.Response(403, request=request))
    with pytest.raises(RuntimeError, match=r"403 Forbidden\. The folder .* is complete"):
        push_folder(folder, "ann/model", api=FakeHub(refusal=refusal))


def test_only_exported_folders_are_pushed(tmp_path):
    hub = FakeHub()
    with pytest.raises(FileNotFoundError, match=r"has no pluralign\.json"):
        push_folder(tmp_path, "ann/model", api=hub)
    assert not hub.asked


def test_what_cannot_be_pushed_is_known_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(RuntimeError, match="set the environment variable HF_TOKEN"):
        check_push("ann/model")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    check_push("ann/model")
    with pytest.raises(ValueError, match="write OWNER/NAME"):
        check_push("model")
    for name in ("ann/mo del", "ann/model/more", "/model"):
        with pytest.raises(ValueError, match="no name of a repository"):
            check_push(name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RuntimeError, match="HF_HUB_OFFLINE is set"):
        check_push("ann/model")


def test_the_token_goes_to_the_hub_alone(folder, monkeypatch):
    made = []

    def fake(*, token, library_name):
        made.append(token)
        return FakeHub()

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setattr("huggingface_hub.HfApi", fake)
    push_folder(folder, "ann/model")
    assert made == [SECRET]
    assert all(SECRET not in path.read_text() for path in folder.iterdir())
