"""A folder that was built beforehand, and when it is refused."""

import sysconfig

import pytest

from hardware import workplace


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder as --build makes it, and the tree of which it is."""
    tree, site = tmp_path / "tree", tmp_path / "site"
    for name in workplace.INSTALLED:
        if "." in name:
            (tree / name).write_text(name)
        else:
            (tree / name).mkdir(parents=True)
            (tree / name / "file.py").write_text(name)
    (site / "logo_kernels").mkdir(parents=True)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    (site / f"logo_kernels/_C{suffix}").touch()
    (site / workplace.STAMP).write_text(workplace.sources_hash(tree))
    return tree, site


def test_a_folder_that_was_built_beforehand(site):
    tree, folder = site
    assert workplace.unusable(folder, tree) is None
    (tree / "logo_kernels/_C.cpython-39.so").touch()  # what was built there is no source
    assert workplace.unusable(folder, tree) is None


@pytest.mark.parametrize("name", ["csrc/file.py", "setup.py", "csrc/new.cu"])
def test_a_folder_of_other_sources_is_refused(site, name):
    tree, folder = site
    (tree / name).write_text("changed")
    assert "other sources" in workplace.unusable(folder, tree)


def test_a_folder_that_is_no_build_is_refused(site):
    tree, folder = site
    for file in (folder / "logo_kernels").iterdir():
        file.unlink()
    assert "with this Python" in workplace.unusable(folder, tree)
    (folder / workplace.STAMP).unlink()
    assert "--build" in workplace.unusable(folder, tree)
