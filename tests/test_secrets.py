"""Files of keys and tokens: what is read, and what stops the start without showing a secret."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from app.ray.settings import RaySettings
from app.settings import Settings


def keys(path, text):
    path.write_bytes(text.encode())
    return {name: key.get_secret_value() for name, key in Settings(api_keys_file=path).keys.items()}


def test_keys_have_names_or_get_numbers(tmp_path):
    """Comments, empty lines, blanks around a line, Windows line ends and a byte-order mark do not matter."""
    text = "\ufeff# ours\r\n\r\nann:first-key\r\n  second-key  \n#x:y\nben.b-2_:third:key!\nfourth-key"
    assert keys(tmp_path / "keys", text) == {
        "ann": "first-key",
        "key-1": "second-key",
        "ben.b-2_": "third:key!",
        "key-2": "fourth-key",
    }


def test_keys_of_the_variable_have_numbers():
    """``API_KEYS`` takes no names: a colon belongs to the key. A key that is listed twice counts once."""
    named = Settings(api_keys="first-key,ann:second-key,first-key").keys
    assert {name: key.get_secret_value() for name, key in named.items()} == {
        "key-1": "first-key",
        "key-2": "ann:second-key",
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "contains no key"),
        ("# nothing\n\n", "contains no key"),
        ("good-key-1\nshort", "line 2"),
        ("ann:short", "line 1"),
        ("ann:", "line 1"),
        ("ann:two words-x", "line 1"),
        ("ann:Schlüssel-Schlüssel", "line 1"),
        ("a/b:good-key-1", "line 1"),
        (":good-key-1", "line 1"),
        ("n" * 65 + ":good-key-1", "line 1"),
        ("ann:good-key-1\nann:good-key-2", "ann is used twice"),
        ("key-1:good-key-1\ngood-key-2", "key-1 is used twice"),
        ("ann:good-key-1\nben:good-key-1", "line 2"),
    ],
)
def test_a_bad_file_of_keys_is_refused(tmp_path, text, reason):
    """The message names the setting and the line, and shows no key."""
    with pytest.raises(ValidationError) as error:
        keys(tmp_path / "keys", text)
    assert "API_KEYS_FILE" in str(error.value)
    assert reason in str(error.value)
    assert "good-key" not in str(error.value)
    assert "short;" not in str(error.value)


@pytest.mark.parametrize("name", ["api_keys_file", "admin_token_file"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, name):
    """Missing, a folder, or no text: each is named."""
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xff" * 9)
    for path in (tmp_path / "missing", tmp_path, tmp_path / "bytes", " "):
        with pytest.raises(ValidationError, match=name.upper()) as error:
            Settings(**{name: path})
        assert str(path) in str(error.value)


@pytest.mark.parametrize("text", ["", "short\n", "first-token\nsecond-token\n", "two words-x"])
def test_a_bad_file_of_the_admin_token_is_refused(tmp_path, text):
    """It holds one good token and nothing else."""
    path = tmp_path / "token"
    path.write_text(text)
    with pytest.raises(ValidationError, match="ADMIN_TOKEN_FILE"):
        Settings(admin_token_file=path)
    path.write_text("a-good-token\n")
    assert Settings(admin_token_file=path).admin_secret.get_secret_value() == "a-good-token"


def test_a_secret_is_given_in_one_way(tmp_path):
    """A variable and a file at once contradict each other; the admin token is not a user's key, in both sources."""
    path = tmp_path / "keys"
    path.write_text("ann:hush-hush\n")
    with pytest.raises(ValidationError, match=r"API_KEYS and API_KEYS_FILE"):
        Settings(api_keys="other-key", api_keys_file=path)
    with pytest.raises(ValidationError, match=r"ADMIN_TOKEN is also one of API_KEYS"):
        Settings(api_keys_file=path, admin_token="hush-hush")
    path.write_text("hush-hush\n")
    with pytest.raises(ValidationError, match=r"ADMIN_TOKEN and ADMIN_TOKEN_FILE"):
        Settings(admin_token="other-key", admin_token_file=path)


@pytest.mark.parametrize(
    ("names", "values"),
    [
        ("METRICS_TOKEN is also ADMIN_TOKEN", {"metrics_token": "hush-hush", "admin_token": "hush-hush"}),
        ("METRICS_TOKEN is also ADMIN_TOKEN", {"metrics_token": "from-file", "admin_token_file": "from-file"}),
        ("METRICS_TOKEN is also one of API_KEYS", {"metrics_token": "hush-hush", "api_keys": "other-key,hush-hush"}),
        ("METRICS_TOKEN is also one of API_KEYS", {"metrics_token": "from-file", "api_keys_file": "ann:from-file"}),
        ("ADMIN_TOKEN is also one of API_KEYS", {"admin_token_file": "from-file", "api_keys_file": "bob:from-file"}),
        ("ADMIN_TOKEN is also one of API_KEYS", {"admin_token_file": "hush-hush", "api_keys": "hush-hush"}),
    ],
)
def test_a_secret_has_one_purpose(tmp_path, names, values):
    """Its holder would have the rights of both. The message has both names, not the secret."""
    for name, text in values.items():
        if name.endswith("_file"):
            (tmp_path / name).write_text(text)
            values = {**values, name: tmp_path / name}
    with pytest.raises(ValidationError, match=names) as error:
        Settings(**values)
    assert not any(secret in str(error.value) for secret in ("hush-hush", "from-file"))


def test_keys_travel_to_replicas(tmp_path):
    """Settings that were copied and sent to another process keep the keys, though the file is not there."""
    import pickle

    path = tmp_path / "keys"
    path.write_text("ann:hush-hush\n")
    settings = RaySettings(api_keys_file=path).model_copy(update={"threads": 1})
    path.unlink()
    assert list(pickle.loads(pickle.dumps(settings)).keys) == ["ann"]
    path.write_text("a-good-token")
    with pytest.raises(ValidationError, match="ADMIN_TOKEN"):
        RaySettings(admin_token_file=path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("keep_alive_ms", 1),
        ("header_timeout_ms", 1),
        ("send_timeout_ms", 1),
        ("max_connections", 5),
        ("root_path", "/tools"),
        ("uds", "/tmp/socket"),
        ("ssl_certfile", __file__),
    ],
)
def test_settings_of_rays_proxy_are_refused_by_name(name, value):
    """They would change nothing there."""
    with pytest.raises(ValidationError, match=name.upper()):
        RaySettings(**{name: value})
    assert RaySettings(**{name: Settings.model_fields[name].default})
