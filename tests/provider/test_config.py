"""Settings: an error names the setting, its value and what is allowed, wherever the value came from."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Annotated

import msgspec
import pytest

from gpu_provider import BatchingProvider, ConfigError, GpuProviderError, ProviderConfig, load_config
from gpu_provider.settings import Settings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("queue_depth", 0),
        ("queue_depth", -1),
        ("queue_depth", 65537),
        ("queue_depth", 2.5),
        ("queue_depth", True),
        ("queue_depth", "many"),
        ("max_batch", 0),
        ("max_batch", 1 << 40),
        ("max_delay", 0),
        ("max_delay", -0.001),
        ("max_delay", math.nan),
        ("max_delay", math.inf),
        ("max_delay", "soon"),
        ("threads", 0),
        ("threads", -4),
        ("backend_timeout", 0.0),
        ("backend_retry", -1.0),
        ("backend", "abacus"),
        ("backend", 3),
    ],
)
class TestNonsense:
    """Zero, negative and nonsense settings are refused, however they are given."""

    def test_as_an_argument(self, field: str, value: object) -> None:
        with pytest.raises(ConfigError) as caught:
            ProviderConfig(**{field: value})  # type: ignore[arg-type]
        assert field in str(caught.value)
        assert repr(value) in str(caught.value)
        assert "must be" in str(caught.value)

    def test_from_the_environment(self, field: str, value: object) -> None:
        variable = f"GPU_PROVIDER_{field.upper()}"
        text = "x" if value is True else str(value)
        with pytest.raises(ConfigError, match=field):
            load_config(ProviderConfig, environ={variable: text if field != "backend" else "abacus"})


def test_the_message_names_field_value_and_what_is_allowed() -> None:
    with pytest.raises(ConfigError) as caught:
        ProviderConfig(queue_depth=0)
    assert str(caught.value) == "queue_depth = 0: it must be a number of requests from 1 to 65536"


def test_config_errors_are_value_errors_under_the_one_root() -> None:
    assert issubclass(ConfigError, GpuProviderError)
    assert issubclass(ConfigError, ValueError)


def test_a_backend_of_a_later_version_says_so_and_what_to_use() -> None:
    with pytest.raises(ConfigError, match="later version; use 'cpu'"):
        ProviderConfig(backend="service")


def test_settings_cannot_be_changed() -> None:
    config = ProviderConfig()
    with pytest.raises(AttributeError):
        config.queue_depth = 3  # type: ignore[misc]


class TestFile:
    def test_flags_go_over_the_environment_over_the_file_over_the_defaults(self, tmp_path: Path) -> None:
        path = tmp_path / "gpu-provider.toml"
        path.write_text('queue-depth = 10\nmax_batch = 20\nmax-delay = 1\nbackend = "libcrypto"\n')
        environ = {"GPU_PROVIDER_MAX_BATCH": "30", "GPU_PROVIDER_MAX_DELAY": "0.5", "PATH": "/bin"}
        config = load_config(ProviderConfig, path, environ, {"max_delay": 0.25, "threads": None})
        assert config == ProviderConfig(backend="libcrypto", queue_depth=10, max_batch=30, max_delay=0.25)

    def test_an_unknown_key_is_an_error_that_names_the_nearest_setting(self, tmp_path: Path) -> None:
        path = tmp_path / "gpu-provider.toml"
        path.write_text("queue-dept = 10\n")
        with pytest.raises(ConfigError, match=r"gpu-provider\.toml: 'queue-dept' .* did you mean 'queue_depth'"):
            load_config(ProviderConfig, path)

    def test_an_unknown_key_unlike_any_lists_the_settings(self) -> None:
        with pytest.raises(ConfigError, match="the settings are arithmetic, backend, "):
            load_config(ProviderConfig, overrides={"xyzzy": 1})

    def test_a_wrong_value_names_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "gpu-provider.toml"
        path.write_text('threads = "two"\n')
        with pytest.raises(ConfigError, match=r"gpu-provider\.toml: threads = 'two': it must be a number of threads"):
            load_config(ProviderConfig, path)

    @pytest.mark.parametrize(
        ("content", "reason"), [(None, "No such file"), (b"queue_depth = = 3", "not valid TOML"), (b"\xff\xfe", "TOML")]
    )
    def test_a_file_that_cannot_be_read_says_why(self, tmp_path: Path, content: bytes | None, reason: str) -> None:
        path = tmp_path / "gpu-provider.toml"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError, match=reason):
            load_config(ProviderConfig, path)

    def test_the_same_setting_twice_is_an_error(self, tmp_path: Path) -> None:
        path = tmp_path / "gpu-provider.toml"
        path.write_text("queue-depth = 10\nqueue_depth = 11\n")
        with pytest.raises(ConfigError, match="twice"):
            load_config(ProviderConfig, path)


class TestEnvironment:
    def test_the_provider_reads_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GPU_PROVIDER_BACKEND", "cpu")
        monkeypatch.setenv("GPU_PROVIDER_QUEUE_DEPTH", "7")
        provider = BatchingProvider()
        assert (provider.config.backend, provider.config.queue_depth) == ("cpu", 7)

    def test_variables_made_up_by_container_platforms_are_not_errors(self) -> None:
        environ = {"GPU_PROVIDER_PORT": "tcp://10.0.0.1:443", "GPU_PROVIDER_SERVICE_HOST": "10.0.0.1"}
        assert load_config(ProviderConfig, environ=environ) == ProviderConfig()

    def test_a_misspelt_variable_is_warned_of(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            load_config(ProviderConfig, environ={"GPU_PROVIDER_QUEUE_DEPHT": "10"})
        assert "GPU_PROVIDER_QUEUE_DEPHT" in caplog.text
        assert "GPU_PROVIDER_QUEUE_DEPTH" in caplog.text


class _Pair(msgspec.Struct, forbid_unknown_fields=True):
    cert: Path
    key: Path


class _Program(Settings, frozen=True, kw_only=True):
    """Settings of another program: nested, lists, paths."""

    pairs: list[_Pair] = msgspec.field(default_factory=list)
    names: Annotated[tuple[str, ...], msgspec.Meta(description="names")] = ()
    verbose: bool = False


class TestOtherSettingsClasses:
    def test_tables_lists_paths_and_booleans_are_read(self, tmp_path: Path) -> None:
        path = tmp_path / "program.toml"
        path.write_text('[[pairs]]\ncert = "a.pem"\nkey = "b.pem"\n')
        environ = {"GPU_PROVIDER_NAMES": "one, two", "GPU_PROVIDER_VERBOSE": "true"}
        config = load_config(_Program, path, environ)
        assert config == _Program(pairs=[_Pair(Path("a.pem"), Path("b.pem"))], names=("one", "two"), verbose=True)

    def test_an_unknown_key_in_a_table_is_an_error(self, tmp_path: Path) -> None:
        path = tmp_path / "program.toml"
        path.write_text('[[pairs]]\ncert = "a.pem"\nkey = "b.pem"\nkeys = 1\n')
        with pytest.raises(ConfigError, match=r"program\.toml: pairs .* `keys`"):
            load_config(_Program, path)
