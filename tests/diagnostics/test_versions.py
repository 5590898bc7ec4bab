"""The known faults of versions."""

import pytest

from roberta_jax.diagnostics import versions
from roberta_jax.diagnostics.report import Level


@pytest.mark.parametrize(
    ("package", "version", "platform", "warned"),
    [
        ("jaxlib", "0.10.1", "gpu", False),
        ("jaxlib", "0.10.2", "gpu", True),
        ("jaxlib", "0.11.0", "gpu", True),
        ("jaxlib", "0.11.1", "gpu", False),
        ("jaxlib", "0.10.2", "cpu", False),
        ("libtpu", "0.0.42.1", "tpu", True),
        ("libtpu", "0.0.41", "tpu", False),
    ],
)
def test_versions_with_faults_of_this_platform_are_named(package, version, platform, warned):
    results = versions.check({"Python": "3.11", package: version}, platform)
    assert results[0].text == f"Python 3.11, {package} {version}"
    levels = [result.level for result in results[1:]]
    assert levels == ([Level.WARNING] if warned else [])
    assert not warned or results[1].text.startswith(f"{package} {version}: ")


def test_versions_are_compared_by_their_numbers():
    assert versions.number("0.10.2.dev20260101+cpu") == (0, 10, 2)
    assert versions.number("0.9.9") < versions.number("0.10.0")
    assert versions.number("unknown") == ()


def test_the_installed_versions_are_listed():
    import jax

    installed = versions.installed("0.2.0")
    assert (installed["roberta_jax"], installed["jax"]) == ("0.2.0", jax.__version__)
    assert {"Python", "jaxlib"} <= installed.keys()
