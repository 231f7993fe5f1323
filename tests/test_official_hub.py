"""Hub ids are looked up in the local cache and never downloaded."""

import socket
import subprocess
import sys

import pytest

from model.official.hub import local_folder

HUB_ID = "caidas/swin2SR-classical-sr-x2-64"


def make_cache(folder, hub_id=HUB_ID):
    """A Hugging Face cache with one empty snapshot, as huggingface_hub lays it out."""
    repository = folder / f"models--{hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    return snapshot


def test_a_folder_is_itself(tmp_path):
    """An existing folder is used, even if its name looks like a hub id."""
    assert local_folder(tmp_path) == tmp_path
    assert local_folder(str(tmp_path)) == tmp_path


def test_a_hub_id_is_found_in_the_cache(tmp_path, monkeypatch):
    """The snapshot of a cached repository is found without opening a connection."""

    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    snapshot = make_cache(tmp_path)
    assert local_folder(HUB_ID, cache_dir=tmp_path) == snapshot


@pytest.mark.parametrize("name", ["caidas/absent", "a/b--c", "a/b..c"])
def test_an_absent_id_says_where_it_was_sought(tmp_path, name):
    """An id that the cache does not hold is an error with the id and the cache in it, and no connection is opened."""
    make_cache(tmp_path)
    with pytest.raises(ValueError, match=name) as caught:
        local_folder(name, cache_dir=tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["absent", "no/such/folder", "../up/there", "/absent/folder", ""])
def test_what_is_no_id_is_refused(tmp_path, monkeypatch, name):
    """A name that is neither here nor an id is an error that says so."""
    monkeypatch.chdir(tmp_path)
    if name:
        with pytest.raises(ValueError, match="does not exist"):
            local_folder(name, cache_dir=tmp_path)
    else:
        assert local_folder(name).exists()  # the current folder, as for pathlib


def test_huggingface_hub_is_imported_only_when_used():
    """Reading a folder imports no huggingface_hub, and naming the package's classes imports no torch."""
    code = (
        "import sys, model, model.official.hub; model.official.hub.local_folder('.');"
        "assert 'huggingface_hub' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
