"""A small Hugging Face Hub stand-in for tests: loopback only, standard library only.

Speaks enough of the Hub's HTTP API for huggingface_hub's snapshot_download,
hf_hub_download, HfFileSystem (Range reads), create_repo, upload_file and
upload_folder.  Uploads use the LFS protocol, so the client must run with
HF_HUB_DISABLE_XET=1; downloads never advertise Xet.

    with FakeHub() as hub:            # hub.url -> http://127.0.0.1:PORT
        ...
    python fakehub.py [PORT] [BLOB_DIR]
"""

import base64
import collections
import hashlib
import json
import pathlib
import re
import socket
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

DATE = "2026-01-01T00:00:00.000Z"
LFS_FROM = 1 << 20  # files this big, or *.safetensors etc., go to LFS
LFS_SUFFIX = (".safetensors", ".bin", ".gguf", ".pt", ".parquet")
PART = 8 << 20  # multipart chunk size
REPO = r"(?P<type>model|dataset|space)s/(?P<repo>[^/]+/[^/]+)"
WEB = r"(?:(?P<prefix>datasets|spaces)/)?(?P<repo>[^/]+/[^/]+)"


class HubError(Exception):
    def __init__(self, status, code="", text=""):
        super().__init__(text or code)
        self.status, self.code = status, code


class Repo:
    def __init__(self, kind, name, private=False):
        self.kind, self.name, self.private, self.gated = kind, name, private, False
        first = hashlib.sha1(f"{kind}/{name}".encode()).hexdigest()
        self.commits = {first: {}}  # oid -> {path: entry}
        self.log = {first: [("initial commit", first)]}  # oid -> newest first
        self.refs = {"main": first}
        self.tags = {}

    def resolve(self, revision):
        oid = self.refs.get(revision) or self.tags.get(revision) or revision
        if oid not in self.commits:
            raise HubError(404, "RevisionNotFound", f"no revision {revision}")
        return oid


class FakeHub:
    def __init__(self, port=0, blobs=None, token="hf_test", user="tester"):
        self._tmp = None if blobs else tempfile.TemporaryDirectory(prefix="fakehub-")
        self.blobs = pathlib.Path(blobs or self._tmp.name)
        self.blobs.mkdir(parents=True, exist_ok=True)
        self.token, self.user = token, user
        self.role = "write"  # of the token
        self.lock = threading.RLock()
        self.reset()
        handler = type("Bound", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # a client that has gone
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc):
        self.server.shutdown()
        self.server.server_close()
        if self._tmp:
            self._tmp.cleanup()

    def reset(self):
        """No repositories, no faults, nothing counted."""
        self.repos = {}
        self.requests = []  # (method, path, status) of every request served
        self.faults = []  # [method regex, path regex, what, times left, headers]
        self.sent = 0  # bytes of all bodies
        self.cdn = None  # how often each signed address of a big file works; None: big files come from here
        self.signatures = collections.Counter()
        self.read_only = set()  # organisations in which the user may not write
        self.then = None  # (path regex, what to do once, after such a request)

    def publish(self, name, folder, message="first"):
        """A commit of all files of a folder, as if they had been uploaded; returns its id."""
        with self.lock:
            repo = self.repos.setdefault(("model", name), Repo("model", name))
            return self.commit(repo, "main", [(p.name, self.keep(p)) for p in sorted(folder.iterdir())], message)

    def keep(self, path, sha256=None):
        """The entry of a file, which is kept; a `sha256` that is given is believed, and the file only linked."""
        size = path.stat().st_size
        if sha256 is None and size < LFS_FROM and not path.name.endswith(LFS_SUFFIX):
            data = path.read_bytes()
            (self.blobs / git_oid(data)).write_bytes(data)
            return {"size": size, "oid": git_oid(data), "lfs": None}
        if sha256 is None:
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            (self.blobs / sha256).write_bytes(path.read_bytes())
        else:
            (self.blobs / sha256).symlink_to(path)
        return {"size": size, "oid": git_oid(sha256.encode()), "lfs": sha256}

    def fetched(self, suffix=""):
        """The names of the files that were downloaded, whole or in part, those with that suffix."""
        names = {p.split("/")[-1].split("?")[0] for m, p, s in self.requests if m == "GET" and "/resolve/" in p}
        return sorted(name for name in names if name.endswith(suffix))

    def fail(self, path, status=503, times=1, method=".*", **headers):
        """Answer the next `times` matching requests with `status`, or "drop" them half way, or let them wait ("1.5" seconds)."""
        self.faults.append([method, path, status, times, headers])

    def repo(self, kind, name):
        try:
            return self.repos[kind, name]
        except KeyError:
            raise HubError(404, "RepoNotFound", f"no {kind} {name}") from None

    def commit(self, repo, branch, changes, message):
        with self.lock:
            parent = repo.resolve(branch)
            files = dict(repo.commits[parent])
            for path, entry in changes:
                if entry is None:
                    files = {p: e for p, e in files.items() if p != path and not p.startswith(path.rstrip("/") + "/")}
                else:
                    files[path] = entry
            oid = hashlib.sha1(json.dumps([parent, message, sorted(files.items())]).encode()).hexdigest()
            repo.commits[oid], repo.refs[branch] = files, oid
            repo.log[oid] = [(message, oid)] + repo.log[parent]
            return oid


def git_oid(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub = None
    protocol_version = "HTTP/1.1"
    routes = []

    # ------------------------------------------------------------ plumbing
    def log_message(self, *args):
        pass

    def body(self):
        """Yield the request body, whether sized or chunked; once."""
        if self.taken:
            return
        self.taken = True
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            chunk = self.rfile.read(min(left, 1 << 20))
            left -= len(chunk)
            yield chunk

    def reply(self, data=b"", status=200, **headers):
        if not isinstance(data, bytes):
            data = json.dumps(data).encode()
            headers.setdefault("Content_Type", "application/json")
        headers = {"Content-Length": str(len(data)), **{k.replace("_", "-"): v for k, v in headers.items()}}
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.hub.requests.append((self.command, self.path, status))
        if self.hub.then and re.search(self.hub.then[0], self.path):
            act, self.hub.then = self.hub.then[1], None
            act()
        if self.command != "HEAD":
            self.hub.sent += len(data)
            self.wfile.write(data[: len(data) // 2] if self.dropping else data)
            if self.dropping:
                self.drop()

    def drop(self):
        """Break the connection off."""
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def handle_any(self):
        url = urlsplit(self.path)
        self.query = {k: v[-1] for k, v in parse_qs(url.query).items()}
        path, self.dropping, self.taken = url.path, False, False
        try:
            for fault in self.hub.faults:
                if fault[3] and re.fullmatch(fault[0], self.command) and re.search(fault[1], unquote(path)):
                    fault[3] -= 1
                    if isinstance(fault[2], float):
                        time.sleep(fault[2])
                    elif fault[2] == "drop":
                        if self.command in ("PUT", "POST"):
                            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
                            self.hub.requests.append((self.command, self.path, "dropped"))
                            return self.drop()
                        self.dropping = True
                    else:
                        error = HubError(fault[2], "", "injected fault")
                        error.headers = fault[4]
                        raise error
            for methods, pattern, func in self.routes:
                match = re.fullmatch(pattern, path)
                if match and self.command in methods.split():
                    args = {k: v and unquote(v) for k, v in match.groupdict().items()}
                    if "repo" in args:
                        kind = args.pop("type", None) or (args.pop("prefix", None) or "models").rstrip("s")
                        args = {k: v for k, v in args.items() if k not in ("type", "prefix")}
                        args["repo"] = self.allowed(self.hub.repo(kind, args["repo"]))
                    return func(self, **args)
            raise HubError(404, "", f"no route {self.command} {path}")
        except HubError as err:
            collections.deque(self.body(), maxlen=0)
            extra = {**({"X_Error_Code": err.code} if err.code else {}), **getattr(err, "headers", {})}
            self.reply({"error": str(err)}, err.status, X_Error_Message=str(err), **extra)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def authed(self):
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def allowed(self, repo):
        if repo.private and not self.authed():
            raise HubError(401, "RepoNotFound", "repository not found")
        if repo.gated and not self.authed():
            raise HubError(403, "GatedRepo", "access to this repository is restricted")
        return repo

    def need_auth(self):
        if not self.authed():
            raise HubError(401, "", "invalid user token")

    def json(self):
        return json.loads(b"".join(self.body()) or b"{}")

    # ----------------------------------------------------------------- api
    def whoami(self):
        self.need_auth()
        self.reply(
            {
                "type": "user",
                "name": self.hub.user,
                "fullname": self.hub.user,
                "orgs": [],
                "auth": {"type": "access_token", "accessToken": {"displayName": "t", "role": self.hub.role}},
            }
        )

    def create(self):
        self.need_auth()
        req = self.json()
        kind, name = req.get("type") or "model", f"{req.get('organization') or self.hub.user}/{req['name']}"
        if name.split("/")[0] in self.hub.read_only:
            raise HubError(403, "", f"You don't have the rights to create a model under the namespace {name}")
        url = f"{self.hub.url}/{'' if kind == 'model' else kind + 's/'}{name}"
        if (kind, name) in self.hub.repos:
            return self.reply({"error": "You already created this model repo", "url": url}, 409)
        self.hub.repos[kind, name] = Repo(
            kind, name, "private" in (req.get("visibility"), req.get("private") and "private")
        )
        self.reply({"url": url, "id": name})

    def validate(self):
        bad = "license: none of yours" in self.json()["content"]
        errors = [{"message": '"license" must be one of the list'}] if bad else []
        self.reply({"errors": errors, "warnings": []}, 400 if bad else 200)

    def delete(self):
        self.need_auth()
        req = self.json()
        kind, name = req.get("type") or "model", f"{req.get('organization') or self.hub.user}/{req['name']}"
        self.hub.repo(kind, name)
        del self.hub.repos[kind, name]
        self.reply()

    def info(self, repo, rev="main"):
        oid = repo.resolve(rev)
        self.reply(
            {
                "id": repo.name,
                "modelId": repo.name,
                "author": repo.name.split("/")[0],
                "sha": oid,
                "private": repo.private,
                "gated": repo.gated,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "lastModified": DATE,
                "createdAt": DATE,
                "siblings": [
                    {"rfilename": e["path"], "size": e["size"], "blobId": e["oid"]}
                    | ({"lfs": {**e["lfs"], "sha256": e["lfs"]["oid"]}} if "lfs" in e else {})
                    for e in self.entries(repo, oid, recursive=True)
                    if e["type"] == "file"
                ],
            }
        )

    def listing(self):
        self.reply(
            [
                {
                    "id": r.name,
                    "modelId": r.name,
                    "private": r.private,
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                    "createdAt": DATE,
                }
                for (k, _), r in self.hub.repos.items()
                if k == "model" and not r.private and self.query.get("search", "") in r.name
            ]
        )

    @staticmethod
    def entry(path, e):
        out = {"type": "file", "path": path, "size": e["size"], "oid": e["oid"]}
        if e["lfs"]:
            out["lfs"] = {"oid": e["lfs"], "size": e["size"], "pointerSize": 130}
        return out

    def entries(self, repo, rev, path="", recursive=False):
        files, root = repo.commits[repo.resolve(rev)], path.strip("/") + "/" if path else ""
        out, dirs = [], {}
        for name in sorted(files):
            if not name.startswith(root):
                continue
            parts = name[len(root) :].split("/")
            for i in range(1, len(parts)) if recursive else range(1, min(2, len(parts))):
                folder = root + "/".join(parts[:i])
                dirs[folder] = {
                    "type": "directory",
                    "path": folder,
                    "size": 0,
                    "oid": hashlib.sha1(folder.encode()).hexdigest(),
                }
            if recursive or len(parts) == 1:
                out.append(self.entry(name, files[name]))
        return [*dirs.values(), *out]

    def tree(self, repo, rev, path=""):
        found = self.entries(repo, rev, path or "", self.query.get("recursive", "").lower() in ("true", "1"))
        if path and not found:
            raise HubError(404, "EntryNotFound", f"no folder {path}")
        self.reply(found)

    def paths_info(self, repo, rev):
        raw = b"".join(self.body())
        if "json" in self.headers.get("Content-Type", ""):
            paths = json.loads(raw)["paths"]
        else:
            paths = parse_qs(raw.decode()).get("paths", [])
        files = repo.commits[repo.resolve(rev)]
        every = {e["path"]: e for e in self.entries(repo, rev, "", True)}
        self.reply([self.entry(p, files[p]) if p in files else every[p] for p in paths if p in files or p in every])

    def refs(self, repo):
        def row(kind, d):
            return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": o} for n, o in d.items()]

        self.reply({"branches": row("heads", repo.refs), "tags": row("tags", repo.tags), "converts": []})

    def commits(self, repo, rev):
        self.reply(
            [
                {"id": oid, "title": title, "message": "", "authors": [{"user": self.hub.user}], "date": DATE}
                for title, oid in repo.log[repo.resolve(rev)]
            ]
        )

    def make_ref(self, repo, kind, name):
        self.need_auth()
        req = self.json()
        source = repo.resolve(name if kind == "tag" else req.get("startingPoint") or "main")
        (repo.tags if kind == "tag" else repo.refs)[req["tag"] if kind == "tag" else name] = source
        self.reply()

    # -------------------------------------------------------------- upload
    def need_write(self, repo):
        self.need_auth()
        if repo.name.split("/")[0] in self.hub.read_only:
            raise HubError(403, "", "Forbidden: pass a token with write access")

    def preupload(self, repo, rev):
        self.need_write(repo)
        files = repo.commits[repo.resolve(rev)]
        self.reply(
            {
                "files": [
                    {
                        "path": f["path"],
                        "shouldIgnore": False,
                        "oid": (had := files.get(f["path"], {})).get("lfs") or had.get("oid"),
                        "uploadMode": "lfs" if f["size"] >= LFS_FROM or f["path"].endswith(LFS_SUFFIX) else "regular",
                    }
                    for f in self.json()["files"]
                ]
            }
        )

    def lfs_batch(self, repo):
        self.need_write(repo)
        out = []
        for obj in self.json()["objects"]:
            if not (self.hub.blobs / obj["oid"]).exists():
                base, header = f"{self.hub.url}/_lfs/{obj['oid']}", {}
                if obj["size"] > PART:
                    header = {"chunk_size": str(PART)}
                    header |= {str(i + 1): f"{base}/{i}" for i in range(-(-obj["size"] // PART))}
                obj["actions"] = {"upload": {"href": base, "header": header}, "verify": {"href": base + "/verify"}}
            out.append(obj)
        self.reply({"transfer": "basic", "objects": out})

    def lfs_put(self, oid, part=None):
        path = self.hub.blobs / (f"{oid}.{part}" if part else oid)
        with open(path, "wb") as f:
            for chunk in self.body():
                f.write(chunk)
        if not part:
            self.check(path, oid)
        self.reply(ETag=f'"{oid[:16]}-{part or 0}"')

    def lfs_complete(self, oid):
        parts = sorted(p["partNumber"] for p in self.json()["parts"])
        with open(self.hub.blobs / oid, "wb") as out:
            for i in parts:
                piece = self.hub.blobs / f"{oid}.{i - 1}"
                out.write(piece.read_bytes())
                piece.unlink()
        self.check(self.hub.blobs / oid, oid)
        self.reply({})

    @staticmethod
    def check(path, oid):
        with open(path, "rb") as f:
            if hashlib.sha256(f.read()).hexdigest() != oid:
                path.unlink()
                raise HubError(400, "", "sha256 mismatch")

    def lfs_verify(self, oid):
        req = self.json()
        path = self.hub.blobs / oid
        if not path.exists() or path.stat().st_size != req["size"]:
            raise HubError(404, "", "object missing")
        self.reply({})

    def post_commit(self, repo, rev):
        self.need_write(repo)
        pull = None
        if self.query.get("create_pr") == "1":
            pull = 1 + sum(name.startswith("refs/pr/") for name in repo.refs)
            repo.refs[f"refs/pr/{pull}"] = repo.resolve(rev)
            rev = f"refs/pr/{pull}"
        changes, title = [], "commit"
        for line in b"".join(self.body()).splitlines():
            item = json.loads(line)
            key, val = item["key"], item["value"]
            if key == "header":
                title = val["summary"]
                if val.get("parentCommit") not in (None, repo.refs.get(rev)):
                    raise HubError(412, "", "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                data = base64.b64decode(val["content"])
                oid = git_oid(data)
                (self.hub.blobs / oid).write_bytes(data)
                changes.append((val["path"], {"size": len(data), "oid": oid, "lfs": None}))
            elif key == "lfsFile":
                blob = self.hub.blobs / val["oid"]
                if not blob.exists():
                    raise HubError(400, "", f"LFS object {val['oid']} was not uploaded")
                pointer = (
                    f"version https://git-lfs.github.com/spec/v1\noid sha256:{val['oid']}\nsize {blob.stat().st_size}\n"
                ).encode()
                changes.append((val["path"], {"size": blob.stat().st_size, "oid": git_oid(pointer), "lfs": val["oid"]}))
            else:
                changes.append((val["path"], None))
        oid = self.hub.commit(repo, rev, changes, title)
        more = {"pullRequestUrl": f"{self.hub.url}/{repo.name}/discussions/{pull}"} if pull else {}
        self.reply({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo.name}/commit/{oid}", **more})

    # ------------------------------------------------------------ download
    def resolve(self, repo, rev, path):
        oid = repo.resolve(rev)
        entry = repo.commits[oid].get(path)
        if entry is None:
            raise HubError(404, "EntryNotFound", f"no file {path}")
        blob, size = self.hub.blobs / (entry["lfs"] or entry["oid"]), entry["size"]
        headers = {
            "X_Repo_Commit": oid,
            "ETag": f'"{entry["lfs"] or entry["oid"]}"',
            "Accept_Ranges": "bytes",
            "Content_Type": "application/octet-stream",
        }
        if entry["lfs"]:
            headers |= {"X_Linked_Etag": headers["ETag"], "X_Linked_Size": str(size)}
        if entry["lfs"] and self.hub.cdn is not None:
            self.hub.signatures[place := f"{entry['lfs']}/{len(self.hub.signatures)}"] = self.hub.cdn
            port = self.hub.server.server_address[1]
            return self.reply(b"", 302, Location=f"http://localhost:{port}/_cdn/{place}?secret=signature", **headers)
        self.bytes_of(blob, size, headers)

    def bytes_of(self, blob, size, headers):
        start, end, status = 0, size, 200
        if match := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first, last = match.groups()
            start = int(first) if first else max(0, size - int(last))
            end = min(int(last) + 1, size) if first and last else size
            if start >= size:
                return self.reply(b"", 416, Content_Range=f"bytes */{size}")
            status, headers["Content_Range"] = 206, f"bytes {start}-{end - 1}/{size}"
        if self.command == "HEAD":
            return self.reply(b"", status, Content_Length=str(end - start), **headers)
        with open(blob, "rb") as f:
            f.seek(start)
            self.reply(f.read(end - start), status, **headers)

    def from_cdn(self, oid, number):
        if "Authorization" in self.headers:
            raise HubError(400, "", "a token has no business here")
        if not self.hub.signatures[f"{oid}/{number}"]:
            raise HubError(403, "", "this address has run out")
        self.hub.signatures[f"{oid}/{number}"] -= 1
        self.bytes_of(self.hub.blobs / oid, (self.hub.blobs / oid).stat().st_size, {"ETag": '"something"'})


Handler.routes = [
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.validate),
    ("DELETE", r"/api/repos/delete", Handler.delete),
    ("GET", r"/api/models", Handler.listing),
    ("GET", rf"/api/{REPO}/tree/(?P<rev>[^/]+)(?:/(?P<path>.*))?", Handler.tree),
    ("POST", rf"/api/{REPO}/paths-info/(?P<rev>[^/]+)", Handler.paths_info),
    ("GET", rf"/api/{REPO}/refs", Handler.refs),
    ("GET", rf"/api/{REPO}/commits/(?P<rev>[^/]+)", Handler.commits),
    ("POST", rf"/api/{REPO}/(?P<kind>branch|tag)/(?P<name>[^/]+)", Handler.make_ref),
    ("POST", rf"/api/{REPO}/preupload/(?P<rev>[^/]+)", Handler.preupload),
    ("POST", rf"/api/{REPO}/commit/(?P<rev>[^/]+)", Handler.post_commit),
    ("GET", rf"/api/{REPO}(?:/revision/(?P<rev>[^/]+))?", lambda s, repo, rev: s.info(repo, rev or "main")),
    ("POST", rf"/{WEB}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/_lfs/(?P<oid>[0-9a-f]{64})(?:/(?P<part>\d+))?", Handler.lfs_put),
    ("POST", r"/_lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_complete),
    ("POST", r"/_lfs/(?P<oid>[0-9a-f]{64})/verify", Handler.lfs_verify),
    ("GET HEAD", r"/_cdn/(?P<oid>[0-9a-f]{64})/(?P<number>\d+)", Handler.from_cdn),
    ("GET HEAD", rf"/{WEB}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", Handler.resolve),
]

if __name__ == "__main__":
    hub = FakeHub(int(sys.argv[1]) if len(sys.argv) > 1 else 0, sys.argv[2] if len(sys.argv) > 2 else None)
    print(hub.url, flush=True)
    hub.server.serve_forever()
