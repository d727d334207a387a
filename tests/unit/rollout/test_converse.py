"""A scripted conversation: ids, masks, budgets and endings by hand; the policy and its environment are scripts."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from rlinf_vlm.data.rendering import Renderer, RenderOptions
from rlinf_vlm.data.turns import TurnRenderer
from rlinf_vlm.envs.protocol import EnvSample
from rlinf_vlm.rollout.converse import Ended, TurnLimits, converse
from rlinf_vlm.rollout.coroutines import Coroutines
from rlinf_vlm.rollout.dialogue import Dialogue, ObservationLimits, Said
from rlinf_vlm.rollout.prompts import Prompt, RowPrompt
from rlinf_vlm.rollout.records import digest
from tests.scripted_envs import Awaited, AwaitedTrouble, NotClosing, Showing, Troubled
from tests.unit.data.builders import png, talk

SAMPLE = EnvSample(row=0, question="", answer="")


@dataclass
class Policy:
    """Says ``script`` turn by turn, as (ids, finish reason), and notes what it was asked."""

    script: list[tuple[tuple[int, ...], Any]]
    asked: list[Prompt] = field(default_factory=list)
    budgets: list[int] = field(default_factory=list)

    async def __call__(self, prompt: Prompt, turn: int, max_new_tokens: int) -> Said:
        assert turn == len(self.asked)
        self.asked.append(prompt)
        self.budgets.append(max_new_tokens)
        ids, reason = self.script[turn]
        return Said(token_ids=ids, logprobs=(-0.5,) * len(ids), text=f"turn {turn + 1}", finish_reason=reason)


@pytest.fixture
def tell(processor):
    """tell(environment's class, script, limits) -> (what came of it, its dialogue, the policy, the environment)."""
    renderer = Renderer(processor, lambda ids, images: torch.zeros(3, len(ids), dtype=torch.int64), RenderOptions())
    conversation = talk(("user", "what colour is it?"), images=(png(),))
    sample = renderer.render_prompt(conversation, row=0)
    prompt = Prompt(
        token_ids=tuple(renderer.prompt_ids(conversation)), images=("row's",), seen_ids=tuple(sample.input_ids.tolist())
    )

    def run(kind, script, *, observation_tokens=100, prompt_tokens=200, **limits):
        dialogue = Dialogue(
            RowPrompt(prompt=prompt, conversation=conversation),
            TurnRenderer(renderer),
            lambda content: renderer.images(content, None),
            ObservationLimits(prompt_tokens=prompt_tokens, observation_tokens=observation_tokens),
            longest_token=20,
        )
        policy, made = Policy(script), []

        def build(*, sample, args):
            made.append(kind(sample, args))
            return made[-1]

        args = limits.pop("args", {})
        settings = {"max_turns": 4, "turn_tokens": 50, "conversation_tokens": 100, "seconds": 20.0, **limits}
        ended = asyncio.run(converse(dialogue, build, SAMPLE, args, policy, TurnLimits(**settings), run.coroutines))
        return ended, dialogue, policy, made[0]

    run.prompt, run.renderer, run.coroutines = prompt, renderer, Coroutines()
    yield run
    run.coroutines.close()


def saying(tell, *lengths, last="stop"):
    """Turns of so many ids, each ended by the end of a turn, the last for the reason ``last``."""
    end = tell.renderer.check_template()
    script = [((*range(300, 300 + length - 1), end), "stop") for length in lengths]
    return [*script[:-1], (script[-1][0], last)]


def patience(why):
    """Seconds of a call: few only where they have to pass, as all calls of the conversation get no more."""
    return 0.5 if "time_limit" in why else 20.0


class Ten(Showing):
    """Is done after ten turns."""

    def step(self, response_text):
        observation, _, info = super().step(response_text)
        return observation, len(self.heard) == 10, info


def test_four_turns_by_hand(tell):
    script = saying(tell, 3, 2, 4, 1)
    ended, dialogue, policy, env = tell(Ten, script)
    assert ended == Ended(outcome="max_turns", info={"turns": 4})
    turns = dialogue.turns
    assert [turn.token_ids for turn in turns] == [ids for ids, _ in script]
    assert env.heard == ["turn 1", "turn 2", "turn 3", "turn 4"] and env.closed == 1
    assert [turn.observation for turn in turns] == ["", "What  colour?", "Look.", "Look."]
    assert [len(turn.images) for turn in turns] == [0, 1, 0, 0]
    # The picture of 84 x 56 pixels is brought to 112 x 112 at least: see what the processor makes of it.
    features = tell.renderer.images(turns[1].images[0], None).num_features
    tokenizer = tell.renderer.tokenizer
    picture = "<|vision_start|>" + "<|image_pad|>" * features + "<|vision_end|>"
    around = "\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    said = [around.format(text) for text in (f"What {picture} colour?", "Look.", "Look.")]
    assert turns[0].context_ids == ()
    for turn, text in zip(turns[1:], said, strict=True):
        assert list(turn.context_ids) == tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = list(tell.prompt.seen_ids)
    for prompt, turn in zip(policy.asked, turns, strict=True):
        whole += turn.context_ids
        assert list(prompt.seen_ids) == whole, "each turn is asked with all that was before it"
        whole += turn.token_ids
    assert [len(prompt.images) for prompt in policy.asked] == [1, 2, 2, 2]
    image = tell.renderer.images.token_id
    assert [prompt.token_ids.count(image) for prompt in policy.asked] == [1, 2, 2, 2]
    assert policy.budgets == [50, 50, 50, 50]
    assert (dialogue.prompt_length, dialogue.prompt_digest) == (len(tell.prompt.seen_ids), digest(tell.prompt.seen_ids))


def test_an_environment_that_is_done_ends_it(tell):
    ended, dialogue, _, env = tell(Showing, saying(tell, 2, 2, 2))
    assert ended == Ended(outcome="completed", info={"turns": 3})
    assert len(dialogue.turns) == 3 and env.closed == 1
    ended, dialogue, _, env = tell(Showing, saying(tell, 2), max_turns=1)
    assert (ended.outcome, len(dialogue.turns), env.heard) == ("max_turns", 1, ["turn 1"])


def test_the_budget_counts_what_is_generated_and_nothing_else(tell):
    ended, dialogue, policy, env = tell(Ten, saying(tell, 5, 5, 2, last="length"), conversation_tokens=12)
    assert ended.outcome == "truncated" and policy.budgets == [12, 7, 2]
    assert env.heard == ["turn 1", "turn 2"] and env.closed == 1, "a turn that was cut is no turn to it"
    assert dialogue.turns[-1].finish_reason == "length" and ended.info == {"turns": 2}
    ended, dialogue, policy, _ = tell(Ten, saying(tell, 5, 5), conversation_tokens=10)
    assert (ended.outcome, policy.budgets) == ("truncated", [10, 5]), "nothing is left, though no turn was cut"
    _, _, policy, _ = tell(Ten, saying(tell, 5, 5, 2, last="length"), turn_tokens=6, conversation_tokens=12)
    assert policy.budgets == [6, 6, 2]


def test_coroutines_are_awaited_and_may_begin_with_an_observation(tell):
    ended, dialogue, policy, env = tell(Awaited, saying(tell, 2, 2, 2))
    assert ended.outcome == "completed" and env.closed == 1
    first = dialogue.turns[0]
    assert len(first.images) == 1 and first.observation == "What  colour?"
    assert policy.asked[0].seen_ids == (*tell.prompt.seen_ids[: dialogue.prompt_length], *first.context_ids)
    assert dialogue.prompt_digest == digest(tell.prompt.seen_ids[: dialogue.prompt_length])
    room = len(policy.asked[0].seen_ids)
    assert tell(Awaited, saying(tell, 2, 2, 2), prompt_tokens=room)[0].outcome == "completed"
    ended = tell(Awaited, saying(tell, 2, 2, 2), prompt_tokens=room - 1)[0]
    assert ended.outcome == "env_error"
    assert (
        ended.detail
        == f"prompt and opening observation have {room} tokens, more than data.max_prompt_length={room - 1}"
    )


@pytest.mark.parametrize(
    ("trouble", "why"),
    [
        ("raises", "step raised RuntimeError: no idea in two lines"),
        ("leaves", "step raised RuntimeError: SystemExit(3)"),
        ("hangs", "step took longer than env.time_limit=0.5 seconds"),
        ("spins", "step took longer than env.time_limit=0.5 seconds"),
        ("runs_out", "step raised RuntimeError: StopIteration()"),
        ("loses_its_server", "step raised TimeoutError: no answer"),
        ("is_blank", "a picture of 0 x 5 pixels"),
        ("is_vast", "a picture of 20000 x 4000 pixels"),
        ("gives_nothing", "step gave a NoneType, not (observation, done, info) with done a bool"),
        ("shows_nothing", "step gave an empty observation, but is not done"),
        ("talks", "an observation has 10,000,000 characters, which 100 tokens cannot hold"),
        ("shows_marks", "the rendered text has 1 image placeholders"),
        ("breaks", "image"),
        ("tells_secrets", "step gave an info that is no plain data: Object of type object is not JSON serializable"),
    ],
)
def test_trouble_is_told_in_one_line_and_the_environment_is_closed(tell, trouble, why):
    args = {"trouble": trouble, "always": True}
    ended, dialogue, _, env = tell(Troubled, saying(tell, 2, 2, 2), args=args, seconds=patience(why))
    assert ended.outcome == "env_error" and ended.detail.startswith(why) and "\n" not in ended.detail
    assert len(dialogue.turns) == 2 and env.closed == 1


@pytest.mark.parametrize(
    ("trouble", "why"),
    [
        ("waits", "step took longer than env.time_limit=0.5 seconds"),
        ("blocks", "step took longer than env.time_limit=0.5 seconds"),
        ("will_not_stop", "step took longer than env.time_limit=0.5 seconds"),
        ("is_cancelled", "step raised RuntimeError: CancelledError()"),
        ("leaves", "step raised RuntimeError: SystemExit(3)"),
        ("loses_its_server", "step raised TimeoutError: no answer"),
    ],
)
def test_a_coroutine_cannot_hold_up_the_loop_that_waits_for_it(tell, trouble, why):
    begun = time.monotonic()
    ended, dialogue, _, env = tell(
        AwaitedTrouble, saying(tell, 2, 2, 2), args={"trouble": trouble}, seconds=patience(why)
    )
    assert (ended.outcome, ended.detail) == ("env_error", why) and time.monotonic() - begun < 10
    assert len(dialogue.turns) == 2 and env.closed == 1
    assert tell(Awaited, saying(tell, 2, 2, 2))[0].outcome == "completed", "the next ones are not held up either"


@pytest.mark.parametrize("kind", [Showing, Awaited])
def test_one_that_is_made_too_late_or_for_nobody_is_closed(tell, kind):
    made, limits = [], TurnLimits(max_turns=2, turn_tokens=5, conversation_tokens=5, seconds=0.2)
    dialogue = tell(Showing, saying(tell, 2, 2, 2))[1]

    def build(*, sample, args):
        time.sleep(0.5)
        made.append(kind(sample, args))
        return made[-1]

    async def hold(patience):
        held = asyncio.create_task(converse(dialogue, build, SAMPLE, {}, Policy([]), limits, tell.coroutines))
        await asyncio.sleep(patience)
        held.cancel()
        return (await asyncio.gather(held, return_exceptions=True))[0]

    ended = asyncio.run(hold(0.4))
    assert ended.detail == "build_env took longer than env.time_limit=0.2 seconds"
    assert isinstance(asyncio.run(hold(0.1)), asyncio.CancelledError)
    end = time.monotonic() + 10
    while [env.closed for env in made] != [1, 1] and time.monotonic() < end:
        time.sleep(0.05)
    assert [env.closed for env in made] == [1, 1]


def test_an_observation_of_one_token_too_many_is_refused(tell):
    script = saying(tell, 2, 2, 2)
    told = len(tell(Showing, script)[1].turns[1].context_ids)
    assert tell(Showing, script, observation_tokens=told)[0].outcome == "completed"
    ended = tell(Showing, script, observation_tokens=told - 1)[0]
    assert (ended.outcome, ended.detail) == (
        "env_error",
        f"an observation has {told} tokens, more than env.max_observation_tokens={told - 1}",
    )


def test_one_that_does_not_close_is_told(tell):
    ended, _, _, _ = tell(NotClosing, saying(tell, 2, 2, 2))
    assert (ended.outcome, ended.detail) == ("completed", "close raised OSError: the door is stuck")


def test_one_that_cannot_be_made_is_an_error_of_it(tell):
    def refuses(sample, args):
        raise KeyError("no such figure")

    class Bare:
        def __init__(self, sample, args):
            """Has no method at all."""

    async def no_policy(*asked):
        raise AssertionError("nothing is asked")

    dialogue = tell(Showing, saying(tell, 2, 2, 2))[1]
    limits = TurnLimits(max_turns=2, turn_tokens=5, conversation_tokens=5, seconds=0.5)
    for build, why in (
        (lambda *, sample, args: refuses(sample, args), "build_env raised KeyError: 'no such figure'"),
        (lambda *, sample, args: Bare(sample, args), "build_env raised TypeError: build_env gave a Bare without"),
    ):
        ended = asyncio.run(converse(dialogue, build, SAMPLE, {}, no_policy, limits, tell.coroutines))
        assert ended.outcome == "env_error" and ended.detail.startswith(why)


def test_an_engine_that_dies_closes_the_environment_and_is_raised(tell):
    made = []

    class Noted(Showing):
        def __init__(self, sample, args):
            super().__init__(sample, args)
            made.append(self)

    with pytest.raises(IndexError):
        tell(Noted, [])
    assert made[0].closed == 1


def test_a_message_that_is_none_is_an_error_of_the_environment(tell):
    for message, why in (
        (None, "format_observation gave a NoneType, not a message"),
        ({"role": "assistant", "content": "x"}, "format_observation gave the role 'assistant'"),
        ({"role": "user", "content": 5}, "format_observation gave as content a int"),
        ({"role": "user", "content": []}, "format_observation gave as content a list"),
        ({"role": "user", "content": [{"type": "video"}]}, "format_observation gave a part that is neither"),
        ({"role": "user", "content": [{"type": "text"}]}, "format_observation gave a part that is neither"),
    ):

        class Odd(Showing):
            def format_observation(self, observation, message=message):
                return message

        ended = tell(Odd, saying(tell, 2, 2, 2))[0]
        assert ended.outcome == "env_error" and ended.detail.startswith(why), (message, ended)
