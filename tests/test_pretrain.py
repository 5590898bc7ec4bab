import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors

from roberta_jax import weights
from roberta_jax.data.pipeline import eval_batches
from roberta_jax.errors import UsageError
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.heads import RobertaForMaskedLM
from roberta_jax.modeling.objectives import masked_lm_objective, training_flops
from roberta_jax.pretrain import pretrain
from roberta_jax.tokenizer import RobertaTokenizer
from roberta_jax.training.checkpoints import Checkpoints
from roberta_jax.training.metrics import read_metrics
from tests.support import texts


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain")
    texts.write_corpus(folder / "corpus.jsonl")
    return folder


@pytest.fixture(scope="module")
def run(place):
    """A finished run: (its folder, its result)."""
    config = texts.small_config(
        place / "corpus.jsonl", place / "cache", **{"eval.ngram_baselines": True}
    )
    return place / "run", pretrain(config, place / "run")


def config_of(place, **changes):
    return texts.small_config(place / "corpus.jsonl", place / "cache", **changes)


def test_a_run_leaves_what_it_should(run):
    folder, result = run
    assert result.finished
    assert result.step == 12
    assert {p.name for p in folder.iterdir() if not p.name.startswith(".")} == {
        "config.json",
        "checkpoints",
        "metrics.jsonl",
        "tensorboard",
        "hf",
    }
    settings = json.loads((folder / "config.json").read_text())
    assert settings["train"]["steps"] == 12
    assert settings["init_from"] is None
    assert sorted(int(p.name) for p in (folder / "checkpoints").iterdir()) == [8, 12]
    assert list((folder / "tensorboard").iterdir())


def test_its_metrics(run):
    folder, result = run
    records = read_metrics(folder)
    assert [r["step"] for r in records if "loss" in r] == [2, 4, 6, 8, 10, 12]
    assert [r["step"] for r in records if "eval_loss" in r] == [5, 10, 12]
    last = records[-1]
    assert last["finished"]
    assert result.metrics.items() <= last.items()
    assert last["eval_perplexity"] == pytest.approx(np.exp(last["eval_loss"]))
    # Twelve steps teach little, but the yardsticks are those of the text, in their order.
    assert 1 < last["bigram_perplexity"] < last["unigram_perplexity"] < 320
    first = records[0]["loss"]
    assert first == pytest.approx(np.log(320), rel=0.1)
    assert records[-2]["loss"] < first


def test_the_export_is_the_trained_model(run):
    folder, _ = run
    model, params = weights.from_pretrained(folder)
    tokenizer = RobertaTokenizer.from_pretrained(folder / "hf")
    assert tokenizer.model_max_length == model.config.max_length == 16
    config = model.config
    assert config.vocab_size == len(tokenizer) == 320
    assert config.max_position_embeddings == 18
    assert (config.hidden_size, config.num_hidden_layers) == (32, 2)
    assert isinstance(model, RobertaForMaskedLM)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    # The head sees the words: a trained model prefers some token to chance.
    ids = jnp.asarray([tokenizer.encode("The cat sees <mask> at home")])
    logits = model.apply({"params": params}, ids).logits
    assert logits.shape == (1, ids.shape[1], 320)


def test_its_evaluation_is_that_of_the_export(run, place):
    """The held-out loss in the records, recomputed from the exported folder."""
    from roberta_jax.pretrain import _Run
    from roberta_jax.pretraining.spec import Plan
    from roberta_jax.pretraining.text import prepare

    folder, result = run
    config = config_of(place, **{"eval.ngram_baselines": True})
    job = _Run(config, Plan(config), folder, None, prepare(config, progress=False))
    model, params = weights.from_pretrained(folder)
    loss_fn, count_fn = masked_lm_objective(model)
    total = count = 0.0
    dataset = job.held_out.datasets["full"]
    for batch in eval_batches(dataset, batch_size=16, seed=0, engine="numpy"):
        total += float(loss_fn(params, batch, None)["masked_lm"])
        count += float(count_fn(batch)["masked_lm"])
    assert total / count == pytest.approx(result.metrics["eval_loss"], rel=1e-5)


def test_a_finished_run_says_so(run, place, capsys, monkeypatch):
    folder, result = run
    monkeypatch.setattr("roberta_jax.pretrain.prepare", None)  # nothing is prepared for it
    again = pretrain(config_of(place, **{"eval.ngram_baselines": True}), folder)
    assert "is finished: 12 steps" in capsys.readouterr().out
    assert (again.finished, again.metrics) == (True, pytest.approx(result.metrics))


def test_a_missing_export_is_written_again(place, capsys):
    config = config_of(place)
    pretrain(config, place / "export")
    exported = place / "export" / "hf" / "model.safetensors"
    before = exported.read_bytes()
    records = read_metrics(place / "export")
    for file in (place / "export" / "hf").iterdir():
        file.unlink()
    (place / "export" / "hf").rmdir()
    assert pretrain(config, place / "export").finished
    assert exported.read_bytes() == before
    assert read_metrics(place / "export") == records


def test_more_steps_go_on(place):
    straight = pretrain(config_of(place, **{"schedule.decay_steps": 20}), place / "straight")
    short = config_of(place, **{"schedule.decay_steps": 20, "train.steps": 7})
    assert pretrain(short, place / "longer").step == 7
    longer = pretrain(config_of(place, **{"schedule.decay_steps": 20}), place / "longer")
    assert straight.metrics == longer.metrics
    assert same_model(place / "straight", place / "longer")


def same_model(*folders):
    a, b = ((folder / "hf" / "model.safetensors").read_bytes() for folder in folders)
    return a == b


def test_where_and_how_a_run_is_done_changes_no_bit(place):
    """The numpy and the tf.data engine, another cache and other cadences."""
    pytest.importorskip("tensorflow")
    pretrain(config_of(place), place / "one")
    changes = {
        "data.engine": "tf",
        "data.cache_dir": str(place / "cache2"),
        "train.log_every": 3,
        "train.eval_every": 0,
        "train.checkpoint_every": 5,
    }
    pretrain(config_of(place, **changes), place / "two")
    assert same_model(place / "one", place / "two")


def test_init_from_goes_on_with_weights_and_tokenizer(run, place):
    folder, _ = run
    # Of config.model only the dropouts count: the shape is the folder's.
    changes = {"init_from": str(folder), "model.hidden_size": 64, "train.steps": 6}
    result = pretrain(config_of(place, **changes), place / "continued")
    model, _ = weights.from_pretrained(place / "continued")
    assert model.config.hidden_size == 32
    before = RobertaTokenizer.from_pretrained(folder / "hf").fingerprint()
    after = RobertaTokenizer.from_pretrained(place / "continued" / "hf").fingerprint()
    assert before == after
    # It starts where the other ended, not from scratch.
    first = read_metrics(place / "continued")[0]["loss"]
    assert first < read_metrics(folder)[0]["loss"] - 0.05
    assert result.finished


def test_without_heldout_text_there_is_no_evaluation(place):
    result = pretrain(config_of(place, **{"data.validation_fraction": 0.0}), place / "no_eval")
    assert result.finished
    assert set(result.metrics) == {"epochs", "padding_share"}
    assert all("eval_loss" not in record for record in read_metrics(place / "no_eval"))


def test_a_diverging_run_stops_and_keeps_its_checkpoint(place):
    changes = {"optimizer.learning_rate": 1e30, "schedule.warmup_steps": 6}
    with pytest.raises(UsageError, match="training diverged"):
        pretrain(config_of(place, **changes, **{"train.checkpoint_every": 1}), place / "diverged")
    with Checkpoints(place / "diverged" / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() >= 1
    assert not (place / "diverged" / "hf").exists()


def test_bert_style_settings_run(place):
    changes = {
        "optimizer.decay_mask": "bert",
        "optimizer.bias_correction": False,
        "optimizer.clip_norm": 1.0,
        "masking.scheme": "whole_word",
        "masking.mask_special_tokens": False,
        "train.per_device_batch_size": 2,
        "train.deterministic": True,
        "execution.remat": "full",
        "execution.scan_layers": False,
        "train.steps": 5,
    }
    assert pretrain(config_of(place, **changes), place / "bert").finished


@pytest.mark.skipif(
    jax.__version_info__ < (0, 8), reason="jaxlib 0.7 has no bfloat16 matrix products on the CPU"
)
def test_bfloat16_computes_and_float32_is_kept(place):
    changes = {"execution.dtype": "bfloat16", "train.steps": 5}
    assert pretrain(config_of(place, **changes), place / "half").finished
    _, params = weights.from_pretrained(place / "half")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.skipif(jax.__version_info__ >= (0, 8), reason="newer ones compute it")
def test_bfloat16_that_the_cpu_cannot_multiply_is_told_at_once(place):
    with pytest.raises(UsageError, match="cannot multiply such matrices on this machine's CPU"):
        pretrain(config_of(place, **{"execution.dtype": "bfloat16"}), place / "half")


PAIRS = {
    "data.format": "segment_pair",
    "data.dupe_factor": 3,
    "objective.next_sentence": True,
    "model.type_vocab_size": 2,
    "seq_len": 48,
    "eval.short_inputs": True,
}


@pytest.fixture(scope="module")
def pairs_run(place):
    """A finished run with next-sentence prediction: (its folder, its result)."""
    return place / "pairs", pretrain(config_of(place, **PAIRS), place / "pairs")


def test_pairs_are_scored_and_recorded(pairs_run):
    folder, result = pairs_run
    assert 0 <= result.metrics["next_sentence_accuracy"] <= 1
    assert result.metrics["next_sentence_loss"] == pytest.approx(np.log(2), rel=0.2)
    assert result.metrics["eval_short_perplexity"] == pytest.approx(
        np.exp(result.metrics["eval_short_loss"])
    )
    assert 0 < result.metrics["padding_share"] < 0.3
    assert result.metrics["epochs"] == pytest.approx(12 * 8 / 343)  # rows of one sampling
    records = [record for record in read_metrics(folder) if "loss" in record]
    assert records[0]["loss"] == pytest.approx(
        records[0]["masked_lm_loss"] + records[0]["next_sentence_loss"], rel=1e-5
    )


def test_the_export_of_pairs_is_a_masked_lm_and_a_head_beside_it(pairs_run):
    folder, _ = pairs_run
    with safetensors.safe_open(folder / "hf" / "model.safetensors", "np") as file:
        assert {name.split(".")[0] for name in file.keys()} == {"roberta", "lm_head"}  # noqa: SIM118
        assert file.get_slice("roberta.embeddings.token_type_embeddings.weight").get_shape()[0] == 2
    with safetensors.safe_open(folder / "hf" / "nsp_head.safetensors", "np") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    assert shapes == {
        "bert.pooler.dense.weight": [32, 32],
        "bert.pooler.dense.bias": [32],
        "cls.seq_relationship.weight": [2, 32],
        "cls.seq_relationship.bias": [2],
    }
    model, _ = weights.from_pretrained(folder)
    assert isinstance(model, RobertaForMaskedLM)


def test_init_from_takes_the_second_head_along(pairs_run, place):
    """Scored as it is before any training: as the run that it goes on from ended."""
    folder, result = pairs_run
    changes = {**PAIRS, "init_from": str(folder), "train.steps": 5, "optimizer.learning_rate": 0.0}
    again = pretrain(config_of(place, **changes), place / "pairs_again")
    for name in ("next_sentence_loss", "next_sentence_accuracy", "eval_loss", "eval_short_loss"):
        assert again.metrics[name] == pytest.approx(result.metrics[name], rel=1e-5), name


def test_init_from_begins_a_second_head_where_there_is_none(run, place):
    changes = {**PAIRS, "init_from": str(run[0]), "seq_len": 16, "train.steps": 5}
    result = pretrain(config_of(place, **changes), place / "new_head")
    assert result.finished
    assert (place / "new_head" / "hf" / "nsp_head.safetensors").exists()


def test_all_settings_are_scored_on_the_same_rows_and_masks(pairs_run, place):
    """Whatever is trained on: format, masking, batch."""
    from roberta_jax.pretraining.datasets import held_out_rows
    from roberta_jax.pretraining.spec import Plan
    from roberta_jax.pretraining.text import prepare

    found = []
    for changes in (
        PAIRS,
        {"data.format": "doc_sentences", "masking.scheme": "span", "masking.rate": 0.4},
        {"masking.dupe_factor": 10, "seed": 7, "train.batch_size": 2},
    ):
        config = config_of(place, **{**changes, "seq_len": 48, "eval.short_inputs": True})
        prepared = prepare(config, progress=False)
        datasets = held_out_rows(config, prepared, Plan(config).pairs, token_types=False)
        batches = [
            list(eval_batches(datasets[name], batch_size=8, seed=config.eval.seed, engine="numpy"))
            for name in ("full", "short")
        ]
        found.append(batches)
    for other in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, found[0], other)


def test_more_steps_need_a_schedule(run, place):
    folder, _ = run
    config = config_of(place, **{"eval.ngram_baselines": True, "train.steps": 20})
    with pytest.raises(UsageError, match=r"planned for 12 steps.*decay_steps=20.*decay_steps=12"):
        pretrain(config, folder)
    assert json.loads((folder / "config.json").read_text())["train"]["steps"] == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective.next_sentence": True}, "next_sentence needs pairs.*'full_sentences'"),
        ({"data.format": "pairs"}, "data.format is 'pairs'.*segment_pair"),
        ({"data.format": "segment_pair", "data.dupe_factor": 0}, "sampled at least once"),
        ({"data.format": "segment_pair", "data.num_separators": 3}, "1 or 2"),
        ({"data.format": "segment_pair", "data.short_seq_prob": 2.0}, "from 0 to 1"),
        ({"data.format": "sentence_pair", "seq_len": 5}, "a pair takes at least 6"),
        ({"masking.scheme": "line"}, "masking.scheme"),
        ({"masking.dupe_factor": 0}, "masking.dupe_factor"),
        ({"data.mixture": ({"file": "x"},)}, "mixture: corpus 1 has 'file'"),
        ({"data.max_tokens": 0}, "max_tokens is 0"),
        ({"optimizer.name": "sgd"}, "optimizer.name='sgd' is unknown: use one of adamw, lamb"),
    ],
)
def test_what_cannot_be_trained_is_told_before_any_text_is_read(place, changes, message):
    changes = {"data.files": "nowhere/*.txt", **changes}
    with pytest.raises(UsageError, match=message):
        pretrain(config_of(place, **changes), place / "never")
    assert not (place / "never").exists()


def test_corpora_are_mixed(place):
    other = texts.write_corpus(place / "other.jsonl", count=40)
    changes = {
        "data.mixture": ({"files": str(other), "weight": 2.0, "max_tokens": 500},),
        "train.steps": 6,
    }
    result = pretrain(config_of(place, **changes), place / "mixed")
    assert result.finished
    straight = pretrain(config_of(place, **changes), place / "mixed")  # finished: says so
    assert straight.metrics == result.metrics


def test_flops_by_formula():
    """Against the compiler's count of an unrolled model's forward pass, three times."""
    config = RobertaConfig(
        vocab_size=1000, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=256, max_position_embeddings=34,
    )  # fmt: skip
    model = RobertaForMaskedLM(config, Execution(scan_layers=False))
    ids, slots = jnp.zeros((4, 32), jnp.int32), jnp.zeros((4, 8), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), ids)["params"]

    def forward(params, ids, slots):
        return model.apply({"params": params}, ids, masked_positions=slots).logits

    counted = jax.jit(forward).lower(params, ids, slots).compile().cost_analysis()["flops"]
    assert training_flops(config, 4, 32, 8) == pytest.approx(3 * counted, rel=0.1)
