# SPDX-License-Identifier: Apache-2.0
"""Finds the things that a caption names: the categories that a sketch is trained with."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from patchword.errors import OptionError

Tagger = Callable[[Sequence[str]], Sequence[tuple[str, str]]]
"""Gives every word its Penn part-of-speech tag, as ``nltk.pos_tag`` does."""

Parser = Literal["fixed", "legacy"]

# What remains of the contractions that the Treebank tokeniser splits once punctuation is gone.
_CONTRACTIONS = {
    "cannot": ("can", "not"),
    "gimme": ("gim", "me"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "lemme": ("lem", "me"),
    "wanna": ("wan", "na"),
}

_CLOSED = {
    "DT": "a an the this that these those some any no every each another all both either neither",
    "IN": "of in on at by with from to into onto over under above below near behind beside besides "
    "between among around across along against through towards toward upon beneath beyond inside "
    "outside within without off up down out for as like than after before during while because if "
    "though although when where since until about next opposite past via atop amid underneath",
    "CC": "and or but nor so yet plus",
    "PRP": "i you he she it we they me him her us them who which what his its their my your our "
    "someone something nothing everything everyone anyone itself himself herself themselves one "
    "other others",
    "CD": "two three four five six seven eight nine ten eleven twelve dozen hundred thousand zero",
    "RB": "not very too also there here just only still again together away back far close quite "
    "almost nearly maybe perhaps really well now then never always often several many much more "
    "most few little lot alone up front apart forward backwards sideways how why",
    "VB": "is are was were be been being am has have had having do does did done doing can could "
    "will would shall should may might must stands stand stood sits sit sat sitting standing runs "
    "run ran flies fly flew flown walks walk walked eats eat ate eaten plays play played rides "
    "ride rode ridden drives drive drove driven holds hold held lies lie lay lying looks look "
    "goes go went gone comes come came gets get got takes take took makes make made see sees saw "
    "seen shows show shown showing wears wear wore worn says say carries carry grows grow grown "
    "grew hangs hang hung swims swim swam jumps jump sleeps sleep slept grazes graze reads read "
    "cuts cut throws throw threw thrown hits hit catches catch caught waits wait puts put shines "
    "shine watches tries try tied keeps keep kept surrounds passes drinks seems seem feels",
    "JJ": "big small large little huge tiny tall short long high low old young new green blue red "
    "yellow black white brown grey gray pink purple dark bright beautiful nice pretty "
    "cute happy sad wooden round flat wide narrow open closed empty full different same "
    "various wild colorful colourful sunny cloudy busy thick thin deep heavy "
    "good bad clean dirty hot cold early late grassy rocky snowy curly wavy steep fluffy strong",
}
_TAGS = {word: tag for tag, words in _CLOSED.items() for word in words.split()}
# Words in -ing and -ed are verbs unless they are known to name a thing.
_THING_WORDS = (
    "building ceiling clothing king ring string swing wing evening morning thing "
    "painting landing railing crossing bed shed seed weed sled wedding pudding "
    "herring earring sibling spring duckling sling bedding lighting awning feed reed "
    "speed ping parking"
)
_THINGS = frozenset(_THING_WORDS.split())


def clean_caption(caption: str) -> str:
    """Lower case without ASCII punctuation, on one line."""
    flat = caption.replace("\n", " ")
    return flat.translate(str.maketrans("", "", string.punctuation)).lower().strip()


def caption_words(caption: str) -> list[str]:
    """The words of a cleaned caption."""
    words: list[str] = []
    for word in clean_caption(caption).split():
        words.extend(_CONTRACTIONS.get(word, (word,)))
    return words


def rule_tagger(words: Sequence[str]) -> list[tuple[str, str]]:
    """Tag words of a plain English caption by closed word lists; what is left is a noun.

    Made for captions such as "a tall giraffe is standing near two trees"; it needs no data. Pass
    ``nltk.pos_tag`` to :func:`caption_categories` for the tagger of the published code.
    """
    return [(word, _tag(word)) for word in words]


def _tag(word: str) -> str:
    if word in _TAGS:
        return _TAGS[word]
    if word.isdigit():
        return "CD"
    if word not in _THINGS:
        if len(word) > 4 and word.endswith("ing"):
            return "VBG"
        if len(word) > 4 and word.endswith("ed"):
            return "VBN"
        if len(word) > 4 and word.endswith("ly") and word not in ("butterfly", "family", "belly"):
            return "RB"
    return "NNS" if word.endswith("s") else "NN"


def noun_phrases(tagged: Sequence[tuple[str, str]]) -> list[str | None]:
    """Runs of nouns and adjectives that end in a noun; None for every word outside them."""
    phrases: list[str | None] = []
    start = 0
    while start < len(tagged):
        end = start
        while end < len(tagged) and (tagged[end][1].startswith("NN") or tagged[end][1] == "JJ"):
            end += 1
        stop = end
        while stop > start and tagged[stop - 1][1] == "JJ":
            stop -= 1
        if stop > start:
            phrases.append(" ".join(word for word, _ in tagged[start:stop]))
            start = stop
        else:
            phrases.append(None)
            start += 1
    return phrases


def caption_categories(
    caption: str,
    *,
    parser: Parser = "fixed",
    tagger: Tagger = rule_tagger,
    max_classes: int = 3,
) -> list[str]:
    """The things that a caption names, each once, in the order of the caption.

    Args:
        caption: One or more sentences.
        parser: ``"fixed"``, or ``"legacy"`` for what the published code emits for the same tags: a
            phrase that ends the caption is lost, and a repeated one is glued to the next. (There
            the order, and with it which ones survive the limit, changed from run to run.)
        tagger: Gives words their Penn tags.
        max_classes: At most so many are kept.

    Returns:
        At least one: a caption without any noun is its own category.

    Raises:
        OptionError: ``parser`` is unknown, or ``max_classes`` is not positive.

    Example:
        >>> caption_categories("A giraffe is eating green leaves.")
        ['giraffe', 'green leaves']
        >>> caption_categories("A giraffe is eating green leaves.", parser="legacy")
        ['giraffe']
    """
    if parser not in get_args(Parser):
        raise OptionError(
            f'caption_categories: parser must be "fixed" or "legacy", got {parser!r}.'
        )
    if max_classes < 1:
        raise OptionError(f"caption_categories: max_classes must be at least 1, got {max_classes}.")
    phrases = noun_phrases(tagger(caption_words(caption)))
    found = _legacy(phrases) if parser == "legacy" else _fixed(phrases)
    return found[:max_classes] or [clean_caption(caption)]


def _fixed(phrases: Sequence[str | None]) -> list[str]:
    return list(dict.fromkeys(phrase for phrase in phrases if phrase is not None))


def _legacy(phrases: Sequence[str | None]) -> list[str]:
    found: list[str] = []
    gathered = ""
    for phrase in phrases:
        if phrase is not None:
            gathered = f"{gathered} {phrase}".strip()
        elif gathered and gathered not in found:
            found.append(gathered)
            gathered = ""
    return found
