from roberta_jax.pretraining import datasets
from roberta_jax.pretraining.batch_digest import batch_digest
from roberta_jax.pretraining.spec import read_spec
from roberta_jax.pretraining.text import prepare


def digest(config, step=3):
    spec = read_spec(config)
    dataset = datasets.training_dataset(spec, prepare(spec.text), token_types=False)
    return batch_digest(spec, dataset, step)


def test_equal_hosts_have_equal_digests(small_config):
    assert digest(small_config()) == digest(small_config())
    # Neither the number of devices nor the input pipeline changes a batch.
    assert digest(small_config()) == digest(
        small_config(**{"data.engine": "auto", "train.per_device_batch_size": 4})
    )


def test_other_batches_have_other_digests(small_config):
    digests = {
        digest(small_config()),
        digest(small_config(), step=4),
        digest(small_config(seed=1)),
        digest(small_config(**{"masking.rate": 0.3})),
        digest(small_config(**{"data.validation_fraction": 0.2})),
    }
    assert len(digests) == 5


def test_after_the_last_step_it_is_that_of_the_last_batch(small_config):
    config = small_config(**{"train.steps": 5})
    assert digest(config, step=5) == digest(config, step=4)
