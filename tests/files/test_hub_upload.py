"""Uploads: what is refused before, what is written, and that one commit does it; the hub is one on 127.0.0.1."""

from __future__ import annotations

import huggingface_hub
import pytest
from fake_hub import FINE, READ, WRITE, Repository

from salun_diffusers.errors import UserError
from salun_diffusers.files.hub_upload import HubPlace, HubTarget, look_at, require_name, upload

OURS = "---\nours: true\n---\nA card.\n"


def is_ours(told) -> bool:
    return told.get("ours") is True


def target(name: str = "me/x", token: str | None = WRITE, private: bool = False) -> HubTarget:
    return HubTarget(name, token, private)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "README.md").write_text(OURS)
    (tmp_path / "w.safetensors").write_bytes(b"weights" * 100)
    return {"README.md": tmp_path / "README.md", "unet/w.safetensors": tmp_path / "w.safetensors"}


def refusal(hub, one: HubTarget) -> str:
    with pytest.raises(UserError) as refused:
        look_at(one, is_ours)
    assert "\n" not in str(refused.value)
    assert hub.written == []
    return str(refused.value)


class TestRefused:
    @pytest.mark.parametrize("name", ["a b", "a/b/c", "a--b", "../x", "", "x.git", "-x", "x" * 97, "a/b\n"])
    def test_what_is_no_name(self, name):
        with pytest.raises(UserError, match="must be NAME or OWNER/NAME"):
            require_name(name)

    def test_without_a_token(self, hub):
        assert "needs a token" in refusal(hub, target(token=None)) and hub.asked == []

    def test_a_token_that_the_hub_does_not_know(self, hub):
        said = refusal(hub, target(token="hf_unknown0123456789"))
        assert "does not accept the token" in said and "hf_unknown" not in said

    def test_a_token_that_only_reads(self, hub):
        assert "the one of me only reads" in refusal(hub, target(token=READ))

    def test_a_fine_grained_token_without_the_right(self, hub):
        assert "only reads" in refusal(hub, target(token=FINE))
        hub.scopes[0]["permissions"].append("repo.write")
        assert look_at(target(token=FINE), is_ours) == HubPlace("me/x", (), None)

    def test_somebody_elses(self, hub):
        assert "someone/x is not yours: the token is that of me, who may write to me, lab" in refusal(
            hub, target("someone/x")
        )

    def test_what_holds_something_else(self, hub):
        hub.repositories["me/x"] = Repository(files={f"{name}.txt": b"" for name in "abcde"})
        assert "holds something else (a.txt, b.txt, c.txt and 2 more)" in refusal(hub, target())

    def test_a_public_one_where_a_private_one_is_asked_for(self, hub):
        hub.repositories["me/x"] = Repository()
        assert "exists and is public" in refusal(hub, target(private=True))

    def test_offline(self, hub, monkeypatch):
        from huggingface_hub.utils import _http

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        (getattr(_http, "close_session", None) or _http.reset_sessions)()
        assert "HF_HUB_OFFLINE is set" in refusal(hub, target()) and hub.asked == []

    def test_a_hub_that_is_not_there(self, hub, monkeypatch):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
        said = refusal(hub, target())
        assert said.startswith("--push_to_hub cannot ask the hub who you are: Connect") or "Connection" in said
        assert WRITE not in said

    def test_a_hub_that_is_ill(self, hub):
        hub.refuse["/api/models"] = 500
        assert refusal(hub, target()).startswith("--push_to_hub cannot look at me/x: ")

    def test_no_error_shows_the_token(self, hub, monkeypatch):
        def careless(*_, **__):
            raise RuntimeError(f"a request with {WRITE} failed")

        monkeypatch.setattr(huggingface_hub.HfApi, "whoami", careless)
        assert "a request with *** failed" in refusal(hub, target())

    def test_no_repr_shows_the_token(self):
        assert WRITE not in repr(target())


class TestAccepted:
    def test_a_new_one_of_the_tokens_owner(self, hub):
        assert look_at(target("x"), is_ours) == HubPlace("me/x", (), None)
        assert look_at(target("lab/x"), is_ours).repository == "lab/x"
        assert hub.written == [] and hub.repositories == {}

    def test_an_empty_one(self, hub):
        hub.repositories["me/x"] = Repository()
        assert look_at(target(), is_ours).files == (".gitattributes",)

    def test_the_stored_token_will_do(self, hub, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", WRITE)
        assert look_at(target("x", token=None), is_ours).repository == "me/x"


class TestUpload:
    @pytest.mark.parametrize("private", [True, False])
    def test_to_a_new_one(self, hub, files, private):
        place = look_at(target(private=private), is_ours)
        assert upload(target(private=private), place, files, "A message") == f"{hub.url}/me/x"
        made = hub.repositories["me/x"]
        assert made.private is private and made.commits == ["initial commit", "A message"]
        assert {name: data for name, data in made.files.items() if name != ".gitattributes"} == {
            name: path.read_bytes() for name, path in files.items()
        }

    def test_again_takes_out_what_is_no_longer_there(self, hub, files):
        old = {".gitattributes": b"x", "README.md": OURS.encode(), "unet/part-1.safetensors": b"old"}
        hub.repositories["me/x"] = Repository(files=dict(old))
        upload(target(), look_at(target(), is_ours), files, "Again")
        assert sorted(hub.repositories["me/x"].files) == [".gitattributes", "README.md", "unet/w.safetensors"]
        assert len(hub.repositories["me/x"].commits) == 2

    def test_not_where_somebody_wrote_in_the_meantime(self, hub, files):
        hub.repositories["me/x"] = Repository()
        place = look_at(target(), is_ours)
        hub.repositories["me/x"].commits.append("somebody's")
        with pytest.raises(UserError, match="somebody else wrote to it"):
            upload(target(), place, files, "Too late")
        assert list(hub.repositories["me/x"].files) == [".gitattributes"]

    def test_the_hub_may_refuse_at_the_end(self, hub, files):
        place = look_at(target(), is_ours)
        hub.refuse["/api/repos"] = 403
        with pytest.raises(UserError, match="the token may not write there"):
            upload(target(), place, files, "No")
