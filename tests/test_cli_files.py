"""Which files a command reads, and how it names what it writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.cli.files import find_images, plan_outputs


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Makes files by their paths, and is the current folder."""
    monkeypatch.chdir(tmp_path)

    def make(*paths):
        for path in map(Path, paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    return make


def results(*places, output="out", variant="v", format_="png"):
    """Names of what would be written, by the names of what is read."""
    return {
        str(job.source): str(job.target) for job in plan_outputs(find_images(places), Path(output), variant, format_)
    }


def test_a_folder_is_searched_to_the_bottom(tree):
    """For images, by their names' endings in any case; what is hidden or something else stays out."""
    tree("in/a.png", "in/deep/er/b.JPeG", "in/.hidden.png", "in/notes.txt", "in/._a.png")
    assert results("in") == {"in/a.png": "out/a-v.png", "in/deep/er/b.JPeG": "out/deep/er/b-v.png"}


def test_several_folders_keep_their_names(tree):
    """So that equal names in them do not meet."""
    tree("one/a.png", "two/a.png")
    assert results("one", "two") == {"one/a.png": "out/one/a-v.png", "two/a.png": "out/two/a-v.png"}


def test_a_pattern_is_expanded_where_the_shell_did_not(tree):
    """Folders below its fixed part stay; a file whose name looks like a pattern is that file."""
    tree("in/x/a.png", "in/y/z/a.png", "in/x/a.txt", "in/odd[1].png")
    assert results("in/**/a.*") == {"in/x/a.png": "out/x/a-v.png", "in/y/z/a.png": "out/y/z/a-v.png"}
    assert results("in/odd[1].png") == {"in/odd[1].png": "out/odd[1]-v.png"}
    assert results("nothing/*.png") == {}


def test_images_that_differ_in_their_ending_alone_get_different_names(tree):
    """Neither is lost."""
    tree("in/a.png", "in/a.jpg", "in/b.png")
    assert results("in") == {
        "in/a.jpg": "out/a-jpg-v.png",
        "in/a.png": "out/a-png-v.png",
        "in/b.png": "out/b-v.png",
    }


def test_two_images_never_become_one_file(tree):
    """As files of a shell pattern would, with and without ``--force``; not if their folders are given."""
    tree("one/a.png", "two/a.png")
    with pytest.raises(ValueError, match=r"one/a.png and two/a.png have the same output file out/a-png-v.png"):
        results("one/a.png", "two/a.png")


def test_nothing_is_read_twice_and_what_is_missing_is_kept(tree):
    """A missing file is reported when its turn comes, like any other that fails."""
    tree("in/a.png")
    assert list(results("in/a.png", "in", "gone.png")) == ["in/a.png", "gone.png"]


def test_results_are_not_read_again(tree):
    """Where they go into the folder that is searched."""
    tree("in/a.png", "in/out/a-v.png")
    found = find_images(["in"], without=Path("in/out"))
    assert [str(each.path) for each in found] == ["in/a.png"]
    assert len(find_images(["in"], without=Path("in"))) == 2


@pytest.mark.parametrize(
    ("format_", "source", "name"),
    [
        ("jpeg", "a.png", "a-v.jpg"),
        ("tiff", "a.png", "a-v.tiff"),
        ("same", "a.webp", "a-v.webp"),
        ("same", "a.GIF", "a-v.png"),
        ("same", "a.HEIC", "a-v.png"),
    ],
)
def test_the_ending_is_the_formats(tree, format_, source, name):
    """As the server would name it."""
    tree(source)
    assert results(source, output=".", format_=format_) == {source: name}
