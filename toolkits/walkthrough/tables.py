"""The numbers of a step as tables in Markdown, and their places in a document.

    StepRecord + Hand -> {name: table}     document with <!-- begin NAME --> .. <!-- end NAME --> -> the same, filled

What was computed by hand is shown; that the trainer has the same is a table of its own. Numbers are rounded for
reading: four digits after the point, six where they are small.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import groupby

from rlinf_vlm.types import UserError
from toolkits.walkthrough.by_hand import Check, Hand, HandUpdate, checks
from toolkits.walkthrough.record import Place, StepRecord, Update

SHOWN_OF_A_RUN = 3
"""Of tokens that stand behind each other and are alike (of an image), the first two and the last are shown."""
KEYS = {
    "kl_beta": "algorithm.kl_beta",
    "kl_penalty_type": "algorithm.kl_penalty_type",
    "clip_ratio_low": "algorithm.clip_ratio_low",
    "clip_ratio_high": "algorithm.clip_ratio_high",
    "upper": "algorithm.rollout_correction.upper",
    "clip_grad": "actor.optim.clip_grad",
    "lr": "actor.optim.lr",
    "adam_beta1": "actor.optim.adam_beta1",
    "adam_beta2": "actor.optim.adam_beta2",
    "adam_eps": "actor.optim.adam_eps",
    "weight_decay": "actor.optim.weight_decay",
    "temperature": "algorithm.sampling_params.temperature",
}
"""Setting -> the key that sets it."""


def tables(record: StepRecord, hand: Hand) -> dict[str, str]:
    """Every table by its name, in the order of the step."""
    found = {
        "settings": _settings(record),
        "answers": _answers(record),
        "tensors": table(
            ["tensor", "shape", "", "dtype"],
            [
                [f"`{item.name}`", f"[{', '.join(map(str, item.shape))}]", f"[{item.letters}]", item.dtype]
                for item in record.tensors
            ],
        ),
        "layout": _layout(record.first_sample),
    }
    for place in range(len(record.answers)):
        found[f"answer-{place + 1}"] = _returns(record, hand, place)
    found["whitening"] = _whitening(hand)
    for number in range(len(record.updates)):
        found[f"update-{number + 1}"] = _update(record, hand, number)
    return {**found, "optimizer": _optimizer(record, hand), "checks": _checks(checks(record, hand))}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def fill(document: str, found: Mapping[str, str]) -> str:
    """``document`` with what stands between the marks of each table replaced. UserError for a mark without a table."""

    def filled(match: re.Match[str]) -> str:
        name = match[1]
        if name not in found:
            raise UserError(f"<!-- begin {name} -->: no such table (there are: {', '.join(found)})")
        return f"<!-- begin {name} -->\n{found[name]}\n<!-- end {name} -->"

    return re.sub(r"<!-- begin ([\w-]+) -->\n.*?<!-- end \1 -->", filled, document, flags=re.DOTALL)


def number(value: float, digits: int = 4) -> str:
    """Rounded, without a minus before zero."""
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def shown(text: str) -> str:
    """Text as code in a cell; what is not printed is named."""
    for found, instead in (("\n", "\\n"), ("|", "\\|"), ("`", "'")):
        text = text.replace(found, instead)
    return f"`{text}`"


def _settings(record: StepRecord) -> str:
    rows = []
    for item in fields(record.settings):
        value = getattr(record.settings, item.name)
        rows.append([f"`{KEYS[item.name]}`", "off" if value is None else str(value)])
    return table(["setting", "value in this step"], rows)


def _answers(record: StepRecord) -> str:
    return table(
        ["answer", "row", "question", "right", "what was answered", "L", "r"],
        [
            [str(place), str(item.row), shown(item.question), shown(item.gold), shown(item.text),
             str(len(item.pieces)), f"{item.reward:g}"]
            for place, item in enumerate(record.answers, start=1)
        ],
    )  # fmt: skip


def _layout(places: Sequence[Place]) -> str:
    rows, t = [], 0
    for piece, group in groupby(places, key=lambda place: place.piece):
        run = list(group)
        for offset, place in enumerate(run):
            if len(run) > SHOWN_OF_A_RUN and 2 <= offset < len(run) - 1:
                if offset == 2:
                    rows.append(["..", "", "", "", "", ""])
                continue
            rows.append([str(t + offset), shown(piece), "yes" if place.supervised else "", *map(str, place.position)])
        t += len(run)
    return table(["t", "token", "supervised", "time", "height", "width"], rows)


def _returns(record: StepRecord, hand: Hand, place: int) -> str:
    answer, rows = record.answers[place], []
    for t, piece in enumerate(answer.pieces):
        scored = [number(answer.old[t]), number(answer.reference[t]) if answer.reference else "-"]
        divergence = number(hand.divergence[place][t], 6) if hand.divergence[place] else "0"
        reward = number(hand.kl_rewards[place][t], 6) if hand.kl_rewards[place] else "0"
        rows.append(
            [shown(piece), number(answer.engine[t]), *scored, divergence, reward,
             number(hand.returns[place][t], 6), number(hand.advantages[place][t])]
        )  # fmt: skip
    return table(["token", "engine", "old", "reference", "KL", "-beta KL", "G", "A"], rows)


def _whitening(hand: Hand) -> str:
    returns = [value for values in hand.returns for value in values]
    advantages = [value for values in hand.advantages for value in values]
    rows = [
        ["tokens of the step N", str(len(returns))],
        ["sum of all G", number(sum(returns), 6)],
        ["mean of G", number(hand.mean, 6)],
        ["standard deviation of G (n - 1)", number(hand.deviation, 6)],
        ["mean of A", number(sum(advantages) / len(advantages), 6)],
        ["largest and smallest A", f"{number(max(advantages))} and {number(min(advantages))}"],
    ]
    return table(["", "value"], rows)


def _update(record: StepRecord, hand: Hand, index: int) -> str:
    update, own = record.updates[index], hand.updates[index]
    rows, place = [], 0
    for answer_number in range(update.first, update.first + update.answers):
        answer = record.answers[answer_number]
        for t, piece in enumerate(answer.pieces):
            token = own.tokens[place]
            rows.append(
                [str(answer_number + 1), shown(piece), number(hand.advantages[answer_number][t]), number(answer.old[t]),
                 number(token.new), number(token.ratio), "yes" if token.bounded else "", number(token.weight),
                 number(token.loss)]
            )  # fmt: skip
            place += 1
    total = sum(token.loss for token in own.tokens)
    rows.append(["all", f"{len(own.tokens)} tokens", "", "", "", "", "", "sum", number(total)])
    rows.append(["", "", "", "", "", "", "", "**loss**", f"**{number(own.loss, 6)}**"])
    return table(["answer", "token", "A", "old", "new", "ratio", "bounded", "weight", "loss of the token"], rows)


def _optimizer(record: StepRecord, hand: Hand) -> str:
    columns = [_optimizer_column(update, own) for update, own in zip(record.updates, hand.updates, strict=True)]
    head = [f"the weight is `{record.weight_name}`", *(f"update {place}" for place in range(1, len(columns) + 1))]
    return table(head, [[name, *(column[name] for column in columns)] for name in columns[0]])


def _optimizer_column(update: Update, own: HandUpdate) -> dict[str, str]:
    return {
        "norm of the whole gradient": number(update.grad_norm),
        "all gradients are multiplied by": number(own.clip),
        "g: gradient of the weight, after that": number(update.gradient, 6),
        "updates before this one": str(update.updates_before),
        "m, v before": f"{update.moment1:.4e}, {update.moment2:.4e}",
        "m, v after": f"{own.moment1:.4e}, {own.moment2:.4e}",
        "the weight before": number(update.weight, 6),
        "the weight after": number(own.weight_after, 6),
    }


def _checks(found: Sequence[Check]) -> str:
    """What is of tokens by its kind, the rest one by one."""
    kinds: dict[str, list[Check]] = {}
    for check in found:
        kinds.setdefault(re.sub(r" of answer .*", ", all tokens", check.name), []).append(check)
    rows = []
    for kind, members in kinds.items():
        largest = max(abs(check.by_hand - check.trainer) for check in members)
        values = [f"{len(members)} numbers", ""]
        if len(members) == 1:
            values = [_either(members[0].by_hand), _either(members[0].trainer)]
        difference = "below 1e-5" if largest < 1e-5 else f"{largest:.1e}"
        verdict = "yes" if all(check.agrees for check in members) else "NO"
        rows.append([f"`{kind}`" if "/" in kind else kind, *values, difference, verdict])
    return table(["", "by hand", "by the trainer", "largest difference", "the same"], rows)


def _either(value: float) -> str:
    """Six digits after the point; of what they would not show, two that count."""
    return f"{value:.1e}" if 0 < abs(value) < 1e-5 else number(value, 6)
