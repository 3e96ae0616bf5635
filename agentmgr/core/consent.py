"""What a person's line means as the answer to a yes-or-no question."""

from __future__ import annotations

AGAIN = "please answer yes or no"

_YES = frozenset(
    {"y", "yes", "yeah", "yep", "sure", "ok", "okay", "of course", "certainly", "go ahead", "do it",
     "approve", "approved", "confirm", "confirmed", "agreed", "true", "1",
     "是", "是的", "好", "好的", "可以", "对", "行", "同意", "确认", "はい",
     "ja", "oui", "si", "sí", "sim", "да"}
)  # fmt: skip
_NO = frozenset(
    {"n", "no", "nope", "never", "don't", "do not", "no way", "of course not", "not now",
     "deny", "denied", "reject", "rejected", "refuse", "stop", "cancel", "abort", "false", "0",
     "不", "不是", "不要", "不行", "不可以", "不同意", "否", "取消", "いいえ",
     "nein", "non", "não", "нет"}
)  # fmt: skip
_POLITE = (" please", " thanks", " thank you")


def yes_or_no(text: str) -> bool | None:
    """None where it is neither: what was not understood is no answer, so the question stays open."""
    words = " ".join(text.replace("\u2019", "'").casefold().split()).rstrip(".!?。！？ ")
    for polite in _POLITE:
        words = words.removesuffix(polite).rstrip(",")
    return True if words in _YES else False if words in _NO else None
