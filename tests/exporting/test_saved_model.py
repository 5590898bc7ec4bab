"""TensorFlow SavedModels: the model's outputs at any batch size and length."""

import numpy as np
import pytest

from roberta_jax.errors import UsageError
from roberta_jax.exporting.lowering import serving_function
from roberta_jax.exporting.saved_model import export_saved_model
from tests.support.exported import build_small, inputs_for


@pytest.mark.parametrize("name", ["RobertaForSequenceClassification", "RobertaForMultipleChoice"])
def test_a_saved_model_returns_the_models_outputs_at_any_size(tmp_path, name):
    tf = pytest.importorskip("tensorflow")
    model, params = build_small(name)
    export_saved_model(tmp_path / "saved", model, params)
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    serve = loaded.signatures["serving_default"]
    for batch, length in ((3, 12), (1, 38)):
        inputs = inputs_for(name, model.config, batch, length)
        expected = serving_function(model)(params, inputs)
        outputs = serve(**{key: tf.constant(value) for key, value in inputs.items()})
        assert outputs.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(outputs[key].numpy(), value, atol=2e-6, err_msg=key)


def test_other_files_are_not_replaced(tmp_path):
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"thesis\.txt"):
        export_saved_model(folder, *build_small("RobertaForMaskedLM"))
    assert (folder / "thesis.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
