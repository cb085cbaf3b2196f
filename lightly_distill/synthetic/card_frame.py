"""What of a card on the Hub is ours, and what is the user's: text around two marks, and most of the header, stay.

Between the marks, the text is written anew each time that something is published.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from lightly_distill.errors import DistillError

BEGIN = (
    "<!-- lightly-distill: from here to the end mark, the text is written anew each time. All around it is yours. -->"
)
END = "<!-- lightly-distill: end -->"


def take_apart(card: str) -> tuple[dict[str, Any], tuple[str, str]]:
    """Returns the header of a card, and the user's text before and after ours.

    Raises:
        DistillError: If the header is not YAML.
    """
    card = card.removeprefix("\ufeff").replace("\r\n", "\n")  # some editors begin a file with a byte-order mark
    header: Any = {}
    if card.startswith("---\n") and "\n---" in card[3:]:
        top, _, card = card[4:].partition("\n---")
        card = card.partition("\n")[2]
        try:
            header = yaml.safe_load(top)
        except yaml.YAMLError as error:
            raise DistillError(
                f"The header of the card that is there is not YAML ({' '.join(str(error).split())}): correct it first."
            ) from error
    before, begin, rest = card.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):  # no card of ours, or a mark was removed: all of it is the user's
        before, after = (f"{card.rstrip()}\n\n" if card.strip() else ""), ""
    return header if isinstance(header, dict) else {}, (before, after.removeprefix("\n"))


def put_together(header: Mapping[str, Any], around: tuple[str, str], body: str) -> str:
    """Returns a card.

    Args:
        header: What the Hub and `datasets` read.
        around: The user's text before and after ours.
        body: Ours.
    """
    top = yaml.safe_dump(dict(header), sort_keys=False, allow_unicode=True)
    body = body.replace(END, "")  # in a name or a setting, it would make the rest the user's
    return f"---\n{top}---\n{around[0]}{BEGIN}\n{body}{END}\n{around[1]}"


def own_text(card: str) -> str:
    """Returns what the user wrote: all text that is not ours, without the header."""
    return "".join(take_apart(card)[1]).strip()


def our_text(card: str) -> str:
    """Returns what stands between our marks, empty where they are not both there."""
    text, end, _ = card.partition(BEGIN)[2].partition(END)
    return text if end else ""


def merged_tags(ours: Sequence[str], before: Mapping[str, Any]) -> list[str]:
    """Returns our tags, and those that the user added to the header."""
    tags = before.get("tags")
    added = [tags] if isinstance(tags, str) else tags if isinstance(tags, list) else []
    return [*ours, *(tag for tag in added if tag not in ours)]
