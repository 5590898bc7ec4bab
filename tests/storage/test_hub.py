"""Models of the hub, from a small server on loopback that speaks what `huggingface_hub` asks."""

import hashlib
import http.server
import json
import pathlib
import threading

import jax
import numpy as np
import pytest
from huggingface_hub import constants

from configs.pretrain import get_config
from roberta_jax import RobertaTokenizer, convert, fill_mask, weights
from roberta_jax.errors import UsageError
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.heads import RobertaForMaskedLM, RobertaForPreTraining
from roberta_jax.pretraining.spec import read_spec
from roberta_jax.pretraining.text import prepare
from roberta_jax.pretraining.text_spec import read_text_spec
from roberta_jax.storage import hub
from roberta_jax.weights.files import WEIGHT_FILE_GROUPS
from roberta_jax.weights.parameters import parameter_shapes
from tests.support.checkpoints import random_params

CONFIG = RobertaConfig.base(
    vocab_size=60,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=20,
)
COMMIT, TAGGED = "1" * 40, "2" * 40
TOKEN = "hf_secret"


class Hub:
    """What the server has, and what was asked of it.

    Attributes:
      repos: {name: {revision: folder}}.
      gated, private: names that need a token.
      fetched: names of the files that were sent.
    """

    def __init__(self):
        self.repos: dict[str, dict[str, pathlib.Path]] = {}
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.fetched: list[str] = []
        self.broken = False


def handler_for(hub_: Hub):
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = self.path.split("?")[0].lstrip("/")
            if hub_.broken:
                return self.refuse(503, "", "down")
            if path.startswith("api/models/"):
                name, _, revision = path.removeprefix("api/models/").partition("/revision/")
                name, _, tree = name.partition("/tree/")  # which newer clients list files by
                return self.tree(name, tree) if tree else self.model(name, revision or "main")
            name, _, rest = path.partition("/resolve/")
            revision, _, file = rest.partition("/")
            return self.file(name, revision, file)

        def refuse(self, status, code, message):
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", message)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def folder(self, name, revision):
            """The folder, or None after an error was sent."""
            known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            if name not in hub_.repos or (name in hub_.private and not known):
                return self.refuse(401, "RepoNotFound", "Repository not found")
            if name in hub_.gated and not known:
                return self.refuse(401, "GatedRepo", "Access is restricted")
            revisions = hub_.repos[name]
            aliases = {"main": COMMIT, "v1": TAGGED}
            revision = aliases.get(revision, revision)
            if revision not in revisions:
                return self.refuse(404, "RevisionNotFound", "Revision not found")
            return revision, revisions[revision]

        def model(self, name, revision):
            if repository := self.folder(name, revision):
                commit, folder = repository
                names = sorted(path.name for path in folder.iterdir())
                body = json.dumps(
                    {
                        "id": name,
                        "modelId": name,
                        "sha": commit,
                        "private": False,
                        "tags": [],
                        "downloads": 0,
                        "likes": 0,
                        "siblings": [{"rfilename": name} for name in names],
                    }
                ).encode()
                self.send(body, {"Content-Type": "application/json"})

        def tree(self, name, revision):
            if repository := self.folder(name, revision):
                files = [
                    {
                        "type": "file",
                        "path": path.name,
                        "size": path.stat().st_size,
                        "oid": "0" * 40,
                    }
                    for path in sorted(repository[1].iterdir())
                ]
                self.send(json.dumps(files).encode(), {"Content-Type": "application/json"})

        def file(self, name, revision, file):
            if repository := self.folder(name, revision):
                commit, folder = repository
                if not (folder / file).exists():
                    return self.refuse(404, "EntryNotFound", "Entry not found")
                body = (folder / file).read_bytes()
                if self.command == "GET":
                    hub_.fetched.append(file)
                etag = hashlib.sha1(body).hexdigest()
                self.send(body, {"X-Repo-Commit": commit, "ETag": f'"{etag}"'})

        def send(self, body, headers):
            self.send_response(200)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    return Handler


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two versions of a model, with files of every format."""
    folders = []
    for seed in range(2):
        model = RobertaForMaskedLM(CONFIG)
        rng = np.random.default_rng(seed)
        shapes, structure = jax.tree.flatten(parameter_shapes(model))
        drawn = [rng.normal(size=x.shape).astype(np.float32) for x in shapes]
        params = jax.tree.unflatten(structure, drawn)
        folder = tmp_path_factory.mktemp("model") / "hf"
        weights.save_pretrained(folder, model, params)
        for name in ("pytorch_model.bin", "flax_model.msgpack", "tf_model.h5", "README.md"):
            (folder / name).write_bytes(b"x")
        for name in ("vocab.json", "merges.txt", "dict.txt"):
            (folder / name).write_text(name)
        folders.append((folder, params))
    return folders


@pytest.fixture
def server(models, tmp_path, monkeypatch):
    served = Hub()
    revisions = {COMMIT: models[0][0], TAGGED: models[1][0]}
    served.repos = {"tiny-roberta": revisions, "someone/tiny": revisions}
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler_for(served))
    threading.Thread(target=web.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{web.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.chdir(tmp_path)
    yield served
    web.shutdown()
    web.server_close()


def assert_trees_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize("name", ["tiny-roberta", "someone/tiny"])
def test_only_the_files_that_are_read_are_fetched(name, server, models):
    _, params = weights.from_pretrained(name)
    assert_trees_equal(params, models[0][1])
    assert sorted(server.fetched) == ["config.json", "model.safetensors"]
    folder = weights.tokenizer_folder(name)
    assert (folder / "vocab.json").read_text() == "vocab.json"
    assert sorted(server.fetched) == [
        "config.json", "dict.txt", "merges.txt", "model.safetensors", "vocab.json"
    ]  # fmt: skip
    # Nothing is fetched twice.
    weights.from_pretrained(name)
    assert len(server.fetched) == 5


def test_the_next_sentence_head_is_fetched_with_the_weights(server, tmp_path):
    model = RobertaForPreTraining(CONFIG)
    params = random_params(model)
    weights.save_pretrained(tmp_path / "pairs", model, params)
    server.repos["someone/pairs"] = {COMMIT: tmp_path / "pairs"}
    loaded = weights.read_pretrained("someone/pairs", RobertaForPreTraining)[1]
    assert_trees_equal(loaded, params)
    files = ["config.json", "model.safetensors", "nsp_head.safetensors"]
    assert sorted(server.fetched) == files
    assert weights.read_config("someone/pairs") == CONFIG


def test_a_revision_can_be_chosen(server, models):
    for revision in ("v1", TAGGED):
        assert_trees_equal(
            weights.read_pretrained("someone/tiny", revision=revision)[1], models[1][1]
        )
    with pytest.raises(UsageError, match="someone/tiny on the hub has no revision 'v9'"):
        weights.read_pretrained("someone/tiny", revision="v9")


def test_private_and_gated_models_need_a_token(server, models, monkeypatch):
    server.private = {"someone/tiny"}
    server.gated = {"tiny-roberta"}
    with pytest.raises(UsageError, match="no folder 'someone/tiny', and no such model on the hub"):
        weights.read_pretrained("someone/tiny")
    with pytest.raises(UsageError, match="tiny-roberta is gated: ask for access"):
        weights.read_pretrained("tiny-roberta")
    for name in ("someone/tiny", "tiny-roberta"):
        assert_trees_equal(weights.read_pretrained(name, token=TOKEN)[1], models[0][1])
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.fetch("someone/tiny", ["README.md"])
    with pytest.raises(UsageError, match="no such model"):
        hub.fetch("someone/tiny", ["README.md"], token=False)


def test_a_cached_model_loads_without_a_connection(server, models, monkeypatch):
    weights.read_pretrained("someone/tiny")
    server.broken = True
    assert_trees_equal(weights.read_pretrained("someone/tiny")[1], models[0][1])
    with pytest.raises(UsageError, match=r"cannot be reached .*is not in the cache"):
        weights.read_pretrained("tiny-roberta")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_trees_equal(weights.read_pretrained("someone/tiny")[1], models[0][1])
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set .*hf download tiny-roberta"):
        weights.read_pretrained("tiny-roberta")


def test_a_server_that_does_not_answer_is_an_error(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UsageError, match=r"cannot be reached .*hf download someone/tiny"):
        weights.read_pretrained("someone/tiny")


def test_a_local_folder_takes_precedence(server, models, tmp_path):
    weights.save_pretrained(tmp_path / "someone" / "tiny", RobertaForMaskedLM(CONFIG), models[1][1])
    assert_trees_equal(weights.read_pretrained("someone/tiny")[1], models[1][1])
    assert not server.fetched
    with pytest.raises(UsageError, match="local folder, which has no revision 'v1'"):
        weights.read_pretrained("someone/tiny", revision="v1")


def test_an_unknown_id_is_an_error(server):
    with pytest.raises(
        UsageError, match="no folder 'nobody/nothing', and no such model on the hub"
    ):
        weights.read_pretrained("nobody/nothing")


def test_a_repository_without_weights_is_an_error_that_lists_its_files(server, models, tmp_path):
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    (tmp_path / "repo" / "tf_model.h5").write_bytes(b"x")
    server.repos["someone/empty"] = {COMMIT: tmp_path / "repo"}
    with pytest.raises(UsageError, match=r"someone/empty holds no model: .*found config\.json"):
        weights.read_pretrained("someone/empty")


def test_commands_accept_hub_ids(server, tmp_path):
    tokenizer = RobertaTokenizer.train(["the cat sat on the mat"] * 5, vocab_size=265)
    model = RobertaForMaskedLM(CONFIG.replace(vocab_size=265, max_position_embeddings=66))
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), parameter_shapes(model))
    weights.save_pretrained(tmp_path / "model", model, zeros, tokenizer)
    server.repos["someone/model"] = {COMMIT: tmp_path / "model"}

    [[choices]] = fill_mask.fill_mask("someone/model", ["the cat<mask>"], top_k=2)
    assert len(choices) == 2

    report = convert.convert("someone/model", tmp_path / "out", "flax")
    assert "tokenizer.json" in report.files
    assert not report.notes

    config = get_config("tiny")
    config.seq_len = 64
    config.init_from = "someone/model"
    config.data.cache_dir = str(tmp_path / "cache of data")
    (tmp_path / "text.txt").write_text("The cat sat. The mat was red.\n\n" * 50)
    config.data.source = "files"
    config.data.files = str(tmp_path / "text.txt")
    assert read_spec(config).model.max_length == 64
    prepared = prepare(read_text_spec(config), progress=False)
    assert prepared.tokenizer.fingerprint() == tokenizer.fingerprint()
    config.init_from = None
    named = RobertaTokenizer.from_pretrained("someone/model", model_max_length=7)
    assert (named.fingerprint(), named.model_max_length) == (tokenizer.fingerprint(), 7)
    with pytest.raises(UsageError, match="no such model on the hub"):
        RobertaTokenizer.from_pretrained("someone/nothing")
    config.tokenizer = "someone/model"
    prepared = prepare(read_text_spec(config), progress=False)
    assert prepared.tokenizer.fingerprint() == tokenizer.fingerprint()
    config.tokenizer = "someone/nothing"
    with pytest.raises(UsageError, match="no such model on the hub"):
        prepare(read_text_spec(config), progress=False)


@pytest.mark.parametrize(
    ("group", "others"),
    [
        (["model.safetensors.index.json", "model-00001-of-00002.safetensors"],
         ["pytorch_model.bin"]),
        (["pytorch_model.bin"], ["flax_model.msgpack", "model.pt"]),
        (["flax_model.msgpack"], ["model.pt", "tf_model.h5"]),
        (["model.pt"], ["checkpoint_last.pt"]),
    ],
)  # fmt: skip
def test_only_the_preferred_format_is_fetched(group, others, server, tmp_path):
    (tmp_path / "repo").mkdir()
    for name in ["config.json", *group, *others]:
        (tmp_path / "repo" / name).write_text("{}")
    server.repos["someone/else"] = {COMMIT: tmp_path / "repo"}
    folder = hub.fetch("someone/else", ["config.json"], WEIGHT_FILE_GROUPS)
    assert sorted(path.name for path in folder.iterdir()) == sorted(["config.json", *group])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("roberta-base", True), ("a/b", True), ("FacebookAI/xlm-roberta-base", True),
        ("./roberta", False), ("/tmp/x", False), ("a/b/c", False), ("~/x", False), ("..", False),
        ("gs://bucket/x", False), ("runs/", False), ("a--b/c", False), ("", False),
    ],
)  # fmt: skip
def test_what_is_a_hub_id(name, expected):
    assert hub.is_hub_id(name) == expected
    assert not hub.is_hub_id(pathlib.Path(name))
