"""Which split a file belongs to: by the names of its folders, or by lists of names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

from pliant.data.discovery.survey import stem_of

WHOLE = "all"
"""The name of the only split of data that are not split."""

_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
    "trainval": "trainval",
}
# What may stand beside the word without a separator, as in `trainannot`, `testset` and `valmasks`.
_BESIDE = re.compile(
    r"(images?|imgs?|pics?|photos?|masks?|labels?|annot(?:ation)?s?|anno|gt|ground_?truth|set|data|split|list|ids?)"
)


def split_word(name: str) -> str | None:
    """The split that the name of a folder or list means, such as `train` for `stage1_train`, `TrainImages` and
    `train2017`; None if it contains no such word, or several that are no split together."""
    tokens = [token.lower() for token in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
    found = {_WORDS[token] for token in tokens if token in _WORDS}
    if not found:
        found = {_WORDS[rest] for token in tokens if (rest := _BESIDE.sub("", token)) in _WORDS}
    if found == {"train", "val"}:
        return "trainval"
    return found.pop() if len(found) == 1 else None


def split_of_path(file: str, skipped: int = 0) -> str | None:
    """The split that the folders of a relative path name; the innermost counts, and the first `skipped` do not."""
    words = (split_word(part) for part in reversed(file.split("/")[skipped:-1]))
    return next((word for word in words if word is not None), None)


def by_list(lengths: Mapping[str, int]) -> dict[str, str]:
    """The split of each list of names, by its file.

    Lists named exactly like a split come before others such as `cat_train.txt`, of which VOC has one for each class.
    Of several, as in VOC's folders Main, Layout and Segmentation, the longest is used.

    Args:
        lengths: number of images in each list, by its file.
    """
    words: dict[str, list[str]] = defaultdict(list)
    for file in lengths:
        word = split_word(stem_of(file))
        if word is not None:
            words[word].append(file)
    chosen = {}
    for word, lists in words.items():
        exact = [file for file in lists if stem_of(file).lower() in _WORDS]
        if exact or len(lists) == 1:
            chosen[max(exact or lists, key=lambda file: lengths[file])] = word
        else:
            chosen |= {file: stem_of(file) for file in lists}
    return chosen
