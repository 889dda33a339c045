# SPDX-License-Identifier: Apache-2.0
"""Captions give the categories that the description lists, in both forms of the parser."""

import pytest

from patchword.errors import OptionError
from patchword.systems.sketchseg.captions import (
    caption_categories,
    caption_words,
    clean_caption,
    noun_phrases,
)


@pytest.mark.parametrize(
    ("caption", "fixed", "legacy"),
    [
        ("a giraffe is eating grass", ["giraffe", "grass"], ["giraffe"]),
        ("two men are standing near a big tree", ["men", "big tree"], ["men"]),
        ("tree and tree and house and dog", ["tree", "house", "dog"], ["tree", "tree house"]),
        ("A man of steel waits.", ["man", "steel"], ["man", "steel"]),
        ("Green grass\nunder the kites!", ["green grass", "kites"], ["green grass"]),
    ],
)
def test_published_examples(caption, fixed, legacy):
    assert caption_categories(caption) == fixed
    assert caption_categories(caption, parser="legacy") == legacy


def test_given_tags_decide():
    tags = [("the", "DT"), ("red", "JJ"), ("kites", "NNS"), ("fly", "VBP"), ("high", "JJ")]
    assert noun_phrases(tags) == [None, "red kites", None, None]
    assert caption_categories("the red kites fly high", tagger=lambda _: tags) == ["red kites"]


def test_without_a_noun_the_caption_is_the_category():
    assert caption_categories("Not very near!") == ["not very near"]


def test_limit_keeps_the_first():
    caption = "a dog and a cat and a cow and a hen are here"
    assert caption_categories(caption) == ["dog", "cat", "cow"]
    assert caption_categories(caption, max_classes=1) == ["dog"]


def test_cleaning():
    assert clean_caption("It's\na DOG, (big).") == "its a dog big"
    assert caption_words("They cannot go") == ["they", "can", "not", "go"]


def test_refusals():
    with pytest.raises(OptionError, match='"fixed" or "legacy"'):
        caption_categories("a dog", parser="nltk")
    with pytest.raises(OptionError, match="max_classes must be at least 1"):
        caption_categories("a dog", max_classes=0)
