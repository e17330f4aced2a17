"""A model directory onto the Hub: looked through, sent, and compared with what the Hub then has.

What the Hub already holds is not sent again, so a push that was interrupted goes on when it is repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from plait.checkpoint import hub
from plait.checkpoint.source import open_model
from plait.errors import PublishError
from plait.types import ModelRef
from plait.writer import PARTIAL

#: what stays at home: unfinished and hidden files
LEFT = [f"*{PARTIAL}", ".*", "*/.*"]
#: weights of an earlier push, which a loader might take for the new ones; what is sent again is not removed
OLD = ["model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json", "pytorch_model*.bin*"]


@dataclass(frozen=True)
class Pushed:
    """What is on the Hub now: address of the model (or of the pull request), commit, files, their bytes."""

    repo: str
    url: str
    commit: str
    files: tuple[str, ...]
    nbytes: int


def ready(repo: str) -> None:
    """Refuse, before any work, what cannot be pushed to: no name of a repository, no token, one that may only read.

    Raises `PublishError`. Whether the token may write to that very repository shows when it is written to.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        found = str(error).splitlines()[0].rstrip(".")
        what, do = f"{repo!r} is no name for a repository", "write letters, digits, '-', '_' and '.', with one '/'"
        raise PublishError(what, wanted="org/name", found=found, do=do) from error
    if repo.count("/") != 1:
        raise PublishError(f"{repo!r} names no owner", wanted="org/name", found=repo, do="write your-name/" + repo)
    if constants.HF_HUB_OFFLINE:
        raise PublishError("the Hub is not to be asked", found="HF_HUB_OFFLINE=1", do="unset it to push")
    if not get_token():
        raise _no_token()
    if not hub.reachable():  # at once, and not after the tries of a request
        raise PublishError(
            f"{repo} cannot be pushed to",
            wanted=f"an answer from {constants.ENDPOINT}",
            found="the Hub cannot be reached",
            do="check the network; nothing was sent",
        )
    with _told(repo):
        me = hub.persist(lambda: HfApi().whoami())
    role = me.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise PublishError(
            "the token may only read",
            wanted="a token with write access",
            found="role: read",
            do="make one on the Hub (settings, access tokens), and run hf auth login",
        )


def push(
    out: Path,
    repo: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
    message: str | None = None,
) -> Pushed:
    """Send the model directory `out` to the repository `repo` (org/name), which is made if there is none.

    `private`: for a new repository; one that is public is refused. `create_pr`: as a pull request. `revision`: to this
    branch, which is made if there is none. Raises `ModelError` for a directory that is not a whole model,
    `PublishError` for what the Hub refuses.
    """
    from huggingface_hub import HfApi

    if create_pr and revision not in (None, "main"):
        raise PublishError(
            "a pull request cannot go to a branch", found=f"--create-pr, --revision {revision}", do="leave one out"
        )
    files = complete(out)
    ready(repo)
    api = HfApi(library_name="plait")
    with _told(repo):
        hub.persist(lambda: api.create_repo(repo, private=private or None, exist_ok=True))
        if private and not hub.persist(lambda: api.model_info(repo)).private:
            raise PublishError(
                f"{repo} is public", wanted="a private repository", do="leave --private out, or choose another name"
            )
        if revision:
            hub.persist(lambda: api.create_branch(repo, branch=revision, exist_ok=True))
        sent = hub.persist(
            lambda: api.upload_folder(
                repo_id=repo,
                folder_path=out,
                commit_message=message or f"Push {out.resolve().name} with plait",
                create_pr=create_pr,
                revision=revision,
                ignore_patterns=list(LEFT),
                delete_patterns=OLD,
            )
        )
        there = hub.persist(lambda: api.model_info(repo, revision=sent.oid, files_metadata=True)).siblings or ()
    listed = {s.rfilename: hub.Published(s.size or 0, s.blob_id, s.lfs.sha256 if s.lfs else None) for s in there}
    wrong = [name for name in files if name not in listed or not hub.whole(out / name, listed[name])]
    if wrong:
        raise PublishError(
            f"{len(wrong)} files on the Hub are not those of {out}",
            wanted="the same bytes",
            found=", ".join(wrong[:4]),
            do="push again; what is there already is not sent twice",
        )
    url = sent.pr_url or f"{api.endpoint}/{repo}" + (f"/tree/{revision}" if revision else "")
    return Pushed(repo, url, sent.oid, tuple(files), sum((out / name).stat().st_size for name in files))


def complete(out: Path) -> list[str]:
    """The files of a model directory that go to the Hub; raises `ModelError` or `PublishError` for one that is not whole."""
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

    if not (out / "config.json").is_file():
        found = "no config.json" if out.is_dir() else "no such directory"
        what, do = f"{out} is not a model directory", "give the folder that a merge wrote"
        raise PublishError(what, wanted="config.json and weights", found=found, do=do)
    if unfinished := sorted(path.name for path in out.glob(f"*{PARTIAL}")):
        raise PublishError(f"{out} is not finished", found=", ".join(unfinished[:4]), do="run the merge to its end")
    open_model(ModelRef(str(out.resolve())))  # headers, lengths, index
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    return list(filter_repo_objects(names, ignore_patterns=LEFT))


def _no_token() -> PublishError:
    return PublishError(
        "there is no token for the Hub",
        wanted="a token with write access",
        found="none",
        do="run hf auth login, or set HF_TOKEN",
    )


@contextmanager
def _told(repo: str) -> Iterator[None]:
    """What the Hub refuses, as a `PublishError`."""
    from huggingface_hub.errors import LocalTokenNotFoundError

    refusals: tuple[type[Exception], ...] = (*hub.network_errors(), ValueError)
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise _no_token() from error
    except refusals as error:
        code, (found, do) = hub.status(error), hub.said(ModelRef(repo), error)
        if code == 403:
            found, do = (
                "your token may not write there (403)",
                f"ask {repo.split('/')[0]} for write access, or check the token",
            )
        elif code == 412 or code == 409:
            found, do = f"somebody else is writing there ({code})", "push again"
        raise PublishError(f"{repo} cannot be pushed to", found=found, do=do) from error
