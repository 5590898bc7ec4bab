"""The known faults of versions."""

import pytest

from roberta_jax.diagnostics import versions
from roberta_jax.diagnostics.report import Level


@pytest.mark.parametrize(
    ("package", "version", "platform", "issues"),
    [
        ("jaxlib", "0.10.1", "gpu", []),
        ("jaxlib", "0.10.2", "gpu", ["jax issue 38806"]),
        ("jaxlib", "0.11.0", "gpu", ["jax issue 38806"]),
        ("jaxlib", "0.11.1", "gpu", []),
        ("jaxlib", "0.10.2", "cpu", []),
        ("libtpu", "0.0.40", "tpu", []),
        ("libtpu", "0.0.41", "tpu", ["xla issue 49143"]),
        ("libtpu", "0.0.42.1", "tpu", ["jax issue 39025", "xla issue 49143"]),
        ("libtpu", "0.0.48", "tpu", ["xla issue 49143"]),
        ("libtpu", "0.0.50", "tpu", []),
    ],
)
def test_versions_with_faults_of_this_platform_are_named(package, version, platform, issues):
    results = versions.check({"Python": "3.11", package: version}, platform)
    assert results[0].text == f"Python 3.11, {package} {version}"
    for result, issue in zip(results[1:], issues, strict=True):
        assert result.level is Level.WARNING
        assert result.text.startswith(f"{package} {version}: ")
        assert f"({issue})" in result.text


def test_versions_are_compared_by_their_numbers():
    assert versions.number("0.10.2.dev20260101+cpu") == (0, 10, 2)
    assert versions.number("0.9.9") < versions.number("0.10.0")
    assert versions.number("unknown") == ()


def test_the_installed_versions_are_listed():
    import jax

    installed = versions.installed("0.2.0")
    assert (installed["roberta_jax"], installed["jax"]) == ("0.2.0", jax.__version__)
    assert {"Python", "jaxlib"} <= installed.keys()
