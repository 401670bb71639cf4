"""Docstrings of the public names: complete, and their examples say what happens."""

import doctest
import inspect

import pytest
import torch

import logo_kernels

# Of what a user calls, but for the methods of torch's own classes.
METHODS = {
    "LoGoLoss.forward": logo_kernels.LoGoLoss.forward,
    "LocalAffinity.forward": logo_kernels.LocalAffinity.forward,
    "LocalAffinity.objective": logo_kernels.LocalAffinity.objective,
    "NegativeQueue.enqueue": logo_kernels.NegativeQueue.enqueue,
}
NAMES = {
    name: getattr(logo_kernels, name) for name in logo_kernels.__all__ if name != "__version__"
}
PUBLIC = {**NAMES, **METHODS}
WITH_FORMULA = {
    "LocalAffinity", "LocalAffinity.objective", "block_cosine_similarity", "info_nce", "logo_loss",
}  # fmt: skip
NOTHING_RAISES = {"LoGoTerms", "available_backends"}


@pytest.mark.parametrize("name", PUBLIC)
def test_examples_say_what_happens(name):
    torch.manual_seed(0)
    subject = PUBLIC[name]
    names = {"torch": torch, **NAMES}
    made = doctest.DocTestFinder(recurse=False).find(subject, name, globs=names)
    examples = [test for test in made if test.examples]
    assert examples, "no example"
    runner = doctest.DocTestRunner()
    for test in examples:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


@pytest.mark.parametrize("name", PUBLIC)
def test_docstrings_are_complete(name):
    text = inspect.getdoc(PUBLIC[name])
    assert text is not None
    assert (".. math::" in text) == (name in WITH_FORMULA)
    assert ("\nRaises:\n" in text) == (name not in NOTHING_RAISES)
    listed = text.partition("\nArgs:\n")[2].partition("\nRaises:\n")[0]
    for argument in inspect.signature(PUBLIC[name]).parameters:
        if argument != "self" and name not in NOTHING_RAISES:
            assert f"    {argument}: " in listed, argument


def test_methods_are_all():
    """A public method that a class of ours defines is looked at."""
    for name, subject in NAMES.items():
        if inspect.isclass(subject) and issubclass(subject, torch.nn.Module):
            own = {key for key, value in vars(subject).items() if inspect.isfunction(value)}
            shown = {key for key in own if not key.startswith("_")} - {"extra_repr"}
            assert {f"{name}.{key}" for key in shown} <= set(METHODS)
