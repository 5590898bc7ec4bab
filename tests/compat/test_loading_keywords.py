"""Keywords of transformers' `from_pretrained` and `save_pretrained`, on every class that has them.

No file that is saved holds a secret that was passed to load something.
"""

import json

import pytest
from huggingface_hub import constants

import roberta_jax
from roberta_jax.errors import NotFoundError, UsageError
from roberta_jax.storage import hub
from tests.support.flax_classes import CAUSAL_LM, CLASSIFIER, MASKED_LM, random_model

SECRET = "hf_s3cret"
PROXIES = {"https": f"http://user:{SECRET}@proxy"}

# Each is passed alone, and all together; values that mean nothing for a local folder.
KEYWORDS = {
    "token": SECRET,
    "cache_dir": f"/{SECRET}",
    "revision": SECRET,
    "proxies": PROXIES,
    "mirror": SECRET,
    "code_revision": SECRET,
    "commit_hash": SECRET,
    "_commit_hash": SECRET,
    "user_agent": SECRET,
    "adapter_kwargs": {"token": SECRET},
    "trust_remote_code": True,
    "force_download": True,
    "local_files_only": True,
    "resume_download": True,
    "from_pt": True,
    "subfolder": "",
    "_from_auto": True,
    "_from_pipeline": SECRET,
}

LOADERS = {
    "RobertaConfig": ("RobertaConfig", MASKED_LM),
    "XLMRobertaConfig": ("XLMRobertaConfig", MASKED_LM),
    "AutoConfig": ("AutoConfig", MASKED_LM),
    "model": (MASKED_LM, MASKED_LM),
    "generating model": (CAUSAL_LM, CAUSAL_LM),
    "new head": (CLASSIFIER, MASKED_LM),
    "XLM-R model": ("FlaxXLMRobertaForMaskedLM", MASKED_LM),
    "auto model": ("FlaxAutoModelForMaskedLM", MASKED_LM),
    "RobertaTokenizer": ("RobertaTokenizer", None),
    "AutoTokenizer": ("AutoTokenizer", None),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{name of a class, or None for a tokenizer: folder}."""
    root = tmp_path_factory.mktemp("saved")
    for name in (MASKED_LM, CAUSAL_LM):
        random_model(name).save_pretrained(root / name)
    texts = ["the cat sat on the mat"] * 20
    roberta_jax.RobertaTokenizer.train(texts, vocab_size=270).save_pretrained(root / "tokenizer")
    return {name: root / (name or "tokenizer") for name in (MASKED_LM, CAUSAL_LM, None)}


def load(loader, folders, **kwargs):
    class_name, saved_name = LOADERS[loader]
    return getattr(roberta_jax, class_name).from_pretrained(folders[saved_name], **kwargs)


def saved_contents(thing, folder, **kwargs):
    thing.save_pretrained(folder, **kwargs)
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_no_secret(contents):
    assert contents
    for name, data in contents.items():
        assert SECRET.encode() not in data, name


@pytest.mark.parametrize("loader", LOADERS)
def test_no_saved_file_holds_a_secret(loader, folders, tmp_path):
    expected = saved_contents(load(loader, folders), tmp_path / "plain")
    thing = load(loader, folders, **KEYWORDS)
    contents = saved_contents(thing, tmp_path / "keywords", token=SECRET, repo_id=SECRET)
    assert_no_secret(contents)
    assert contents == expected  # no keyword leaves any trace
    loaded = load(loader, folders, use_auth_token=SECRET)
    assert_no_secret(saved_contents(loaded, tmp_path / "old_name"))


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_keywords_of_configs_one_by_one(keyword, folders, tmp_path):
    config = load("RobertaConfig", folders, **{keyword: KEYWORDS[keyword]})
    assert not hasattr(config, keyword)
    assert_no_secret(saved_contents(config, tmp_path / "config"))
    for config in (
        roberta_jax.RobertaConfig(**{keyword: KEYWORDS[keyword]}),
        roberta_jax.RobertaConfig.from_dict({keyword: KEYWORDS[keyword]}),
        roberta_jax.RobertaConfig.from_dict({}, **{keyword: KEYWORDS[keyword]}),
    ):
        assert config == roberta_jax.RobertaConfig()
    setattr(config, keyword, KEYWORDS[keyword])
    assert SECRET not in config.to_json_string(use_diff=False)
    assert keyword not in config.to_dict()


def test_secrets_of_other_configs_are_not_saved(tmp_path):
    """A config file that an earlier version wrote may hold a token; so may any other class's."""

    class OtherConfig:
        def to_dict(self):
            return random_model(MASKED_LM).config.to_dict() | {"use_auth_token": SECRET}

    model = type(random_model(MASKED_LM))(OtherConfig(), _do_init=False)
    params = random_model(MASKED_LM).params
    assert_no_secret(saved_contents(model, tmp_path / "first", params=params))
    config = json.loads((tmp_path / "first" / "config.json").read_text())
    (tmp_path / "first" / "config.json").write_text(json.dumps(config | {"token": SECRET}))
    loaded = type(model).from_pretrained(tmp_path / "first")
    assert_no_secret(saved_contents(loaded, tmp_path / "second"))


def test_secrets_are_not_shown(monkeypatch):
    options = hub.HubOptions.pop_from({"token": SECRET}, "user/name")
    assert options.token == SECRET
    assert SECRET not in repr(options)
    with pytest.raises(UsageError) as info:
        hub.HubOptions.pop_from({"token": SECRET, "use_auth_token": SECRET}, "user/name")
    assert SECRET not in str(info.value)


@pytest.mark.parametrize("loader", LOADERS)
def test_keywords_reach_the_hub(loader, folders, monkeypatch):
    requests = []

    def fetch(path, files, alternatives=(), **options):
        requests.append((path, options))
        raise NotFoundError("stop here")

    monkeypatch.setattr(hub, "fetch", fetch)
    keywords = {"revision": "v1", "cache_dir": "/c", "force_download": True}
    class_name, _ = LOADERS[loader]
    for given, token in (({"token": "t"}, "t"), ({"use_auth_token": True}, True), ({}, None)):
        requests.clear()
        with pytest.raises(OSError, match="stop here"):
            getattr(roberta_jax, class_name).from_pretrained(
                "user/name", **keywords, **given, trust_remote_code=False
            )
        expected = keywords | {"token": token, "local_files_only": False}
        assert requests
        assert all(request == ("user/name", expected) for request in requests)


@pytest.mark.parametrize("loader", LOADERS)
def test_keywords_that_must_not_be_ignored(loader, folders):
    with pytest.raises(UsageError, match="token and use_auth_token"):
        load(loader, folders, token="a", use_auth_token="b")
    with pytest.raises(UsageError, match="gguf_file is not supported"):
        load(loader, folders, gguf_file="model.gguf")
    class_name, _ = LOADERS[loader]
    with pytest.raises(UsageError, match="HTTPS_PROXY"):
        getattr(roberta_jax, class_name).from_pretrained("user/name", proxies=PROXIES)


@pytest.mark.parametrize("loader", LOADERS)
def test_missing_folders_are_os_errors(loader, tmp_path):
    class_name, _ = LOADERS[loader]
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(OSError, match="missing|" + tmp_path.name):
            getattr(roberta_jax, class_name).from_pretrained(path)


def test_what_is_not_on_the_hub_is_an_os_error(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for class_name in ("RobertaConfig", MASKED_LM, "FlaxAutoModel", "RobertaTokenizer"):
        with pytest.raises(OSError, match="user/missing: HF_HUB_OFFLINE is set"):
            getattr(roberta_jax, class_name).from_pretrained("user/missing")


@pytest.mark.parametrize("loader", LOADERS)
def test_nothing_is_uploaded(loader, folders, tmp_path):
    thing = load(loader, folders)
    with pytest.raises(UsageError, match=r"push_to_hub is not supported.*hf upload"):
        thing.save_pretrained(tmp_path / "new", push_to_hub=True, repo_id="user/name")
    with pytest.raises(UsageError, match="hf upload"):
        thing.push_to_hub("user/name", commit_message="a", token=SECRET)
    with pytest.raises(TypeError, match="unexpected keyword argument 'saef_serialization'"):
        thing.save_pretrained(tmp_path / "new", saef_serialization=True)
    assert not (tmp_path / "new").exists()
    thing.save_pretrained(str(tmp_path / "new"), commit_message="a", repo_id="b", private=True)
    assert (tmp_path / "new").exists()


def test_from_config_ignores_loading_keywords():
    config = roberta_jax.RobertaConfig.from_dict(random_model(MASKED_LM).config.to_dict())
    for cls in (
        roberta_jax.FlaxRobertaForMaskedLM,
        roberta_jax.FlaxAutoModelForMaskedLM,
    ):
        model = cls.from_config(config, seed=3, trust_remote_code=True, _do_init=False)
        assert type(model) is roberta_jax.FlaxRobertaForMaskedLM
        assert (model.seed, model.config) == (3, config)
