"""The report of runs, looked at in a real browser: curves, a sample opened by a click, colours, the keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import Browser, find_browser
from tests.report_runs import write_run
from toolkits.report.make_report import make_report

LIST = "#sample-list button"
COLOURS = "[...document.querySelectorAll('.tokens span')].map((one) => getComputedStyle(one).backgroundColor)"


@pytest.fixture(scope="module")
def pages(tmp_path_factory, small_run) -> dict[str, str]:
    """URLs of the reports of one run, of three seeds and another setting, of one step, and of fine-tuning."""
    folder = tmp_path_factory.mktemp("pages")
    seeds = [write_run(folder / f"seed{seed}", small_run, seed=seed) for seed in (1, 2, 3)]
    hot = write_run(folder / "hot", small_run, actor__optim__lr=5e-3)
    runs = {
        "one": seeds[:1],
        "several": [*seeds, hot],
        "step": [write_run(folder / "step", small_run, steps=1)],
        "sft": [write_run(folder / "sft", small_run, steps=30, task="sft")],
    }
    return {name: make_report(given, folder / "out" / name).as_uri() for name, given in runs.items()}


@pytest.fixture(scope="module")
def chromium() -> str:
    """The program."""
    found = find_browser()
    assert found is not None, "no chromium on this machine: bash toolkits/setup/browser.sh installs it, as root"
    return found


@pytest.fixture(scope="module")
def browser(chromium) -> Iterator[Browser]:
    """One browser for all tests."""
    with Browser(chromium) as started:
        yield started


@pytest.fixture(autouse=True)
def quiet(browser: Browser) -> Iterator[None]:
    """No page says an error or asks for anything but itself."""
    yield
    assert browser.errors == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []
    assert sum(url.startswith("file:") for url in browser.requests) == 1


def count(browser: Browser, selector: str) -> int:
    found: int = browser.value(f"document.querySelectorAll({selector!r}).length")
    return found


def text(browser: Browser, selector: str) -> str:
    found: str = browser.value(f"document.querySelector({selector!r}).textContent")
    return found


def test_every_panel_has_curves_with_axes(browser, pages):
    browser.open(pages["one"])
    empty = browser.value(
        "[...document.querySelectorAll('#panels figure')].filter((one) => !one.querySelector('path.curve[d^=M]') "
        "|| one.querySelectorAll('text').length < 4).map((one) => one.id)"
    )
    assert empty == []
    assert count(browser, "#panels figure") >= 12
    assert count(browser, "#panel-accuracy path.band") == 4
    assert "NaN" not in browser.value("document.getElementById('panels').innerHTML")


def test_values_are_shown_under_the_mouse_and_by_keys(browser, pages):
    browser.open(pages["one"])
    browser.hover("#panel-reward svg[role=img]")
    shown = text(browser, "#tip")
    assert shown.startswith("step ") and "training: 0." in shown
    browser.value("document.querySelector('#panel-reward svg[role=img]').focus()")
    browser.key("ArrowRight")
    assert int(text(browser, "#tip").split()[1]) == int(shown.split()[1]) + 1


def test_the_axis_turns_to_epochs(browser, pages):
    browser.open(pages["one"])
    ticks = "[...document.querySelectorAll('#panel-reward text')].map((one) => one.textContent)"
    before = browser.value(ticks)
    browser.click("input[name=axis][value=epoch]")
    after = browser.value(ticks)
    assert "step" in before and "epoch" in after and "20" in before and "20" not in after and "1" in after


def test_a_click_opens_a_conversation_with_its_pictures(browser, pages):
    browser.open(pages["one"])
    place = browser.value(f"[...document.querySelectorAll('{LIST}')].findIndex((one) => one.item.turns.length === 3)")
    browser.click(LIST, place)
    assert count(browser, "#sample .turn.assistant") == 3
    assert count(browser, "#sample .turn.observation") == 2
    assert count(browser, "#sample .turn.prompt img") + count(browser, "#sample .turn.observation img") >= 1
    sizes = browser.value(
        "Promise.all([...document.querySelectorAll('#sample img')].map(async (one) => { "
        "await one.decode(); return one.naturalWidth; }))"
    )
    assert sizes and min(sizes) > 0
    assert "<img src=x onerror=alert(1)>" in text(browser, "#sample .turn.observation")
    assert "max turns" in text(browser, "#sample .facts")
    assert browser.value(f"document.querySelectorAll('{LIST}')[{place}].getAttribute('aria-current')") == "true"


def test_the_switch_changes_the_colours(browser, pages):
    browser.open(pages["one"])
    assert count(browser, "#sample .turn.assistant") == 3  # what is opened first has several turns
    by_advantage = browser.value(COLOURS)
    assert len(set(by_advantage)) == 1  # an answer has one advantage
    browser.click("input[name=colour][value=gap]")
    by_gap = browser.value(COLOURS)
    assert len(set(by_gap)) > 3
    browser.click("input[name=colour][value=none]")
    assert set(browser.value(COLOURS)) == {"rgba(0, 0, 0, 0)"}
    browser.click("input[name=colour][value=gap]")
    browser.hover("#sample .tokens span", 2)
    shown = text(browser, "#tip")
    assert "engine log p" in shown and "trainer log p" in shown and "gap" in shown and "advantage" in shown


def test_samples_are_chosen_filtered_and_sorted(browser, pages):
    browser.open(pages["one"])
    pick = (
        "(name, value) => {{ const one = document.getElementById('sample-' + name); one.value = value; "
        "one.dispatchEvent(new Event('change')); }}".replace("{{", "{").replace("}}", "}")
    )
    browser.value(f"({pick})('show', 'outcome:truncated')")
    assert set(browser.value(f"[...document.querySelectorAll('{LIST}')].map((one) => one.item.outcome)")) == {
        "truncated"
    }
    browser.value(f"({pick})('show', '')")
    browser.value(f"({pick})('sort', 'high')")
    rewards = browser.value(f"[...document.querySelectorAll('{LIST}')].map((one) => one.item.reward)")
    assert rewards == sorted(rewards, reverse=True) and len(set(rewards)) == 2
    browser.value(f"({pick})('step', '1')")
    assert set(browser.value(f"[...document.querySelectorAll('{LIST}')].map((one) => one.item.step)")) == {1}
    browser.value(f"({pick})('set', 'evaluation')")
    assert "greedy answer" in text(browser, "#sample .turn.assistant")


def test_several_runs_are_lines_with_bands_that_can_be_hidden(browser, pages):
    browser.open(pages["several"])
    assert count(browser, "#panel-reward path.curve") == 2
    assert count(browser, "#panel-reward path.band") == 1  # of the seeds; one run of the other setting has none
    assert count(browser, "#panel-step_time svg[role=img]") == 2
    browser.click("#curve-bar input[type=checkbox]", 1)
    assert count(browser, "#panel-reward path.curve") == 1
    assert "actor.optim.lr" in text(browser, "#settings")
    assert "mean ± sd of 3" in text(browser, "#figures")


@pytest.mark.parametrize("name", ["step", "sft"])
def test_a_run_of_one_step_and_one_without_rollouts_have_curves(browser, pages, name):
    browser.open(pages[name])
    assert count(browser, "#panel-loss .curve") >= 1
    assert "NaN" not in browser.value("document.getElementById('panels').innerHTML")
    if name == "sft":
        assert "no recorded answers" in text(browser, "#samples")


def test_dark_and_light_have_readable_text(pages, chromium):
    shades = []
    for dark in (False, True):
        with Browser(chromium, dark=dark) as other:
            other.open(pages["one"])
            style = other.value(
                "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
            )
            shades.append([sum(int(part) for part in one[4:-1].split(",")) for one in style])
    assert shades[0][0] < 200 < 600 < shades[0][1]
    assert shades[1][0] > 600 > 200 > shades[1][1]


def test_a_narrow_window_scrolls_down_only(pages, chromium):
    with Browser(chromium, width=600) as other:
        other.open(pages["one"])
        assert other.value("document.documentElement.scrollWidth <= innerWidth")


def test_page_is_one_file(pages, tmp_path):
    """Copied without the pictures beside it, it is the same."""
    page = Path(pages["one"].removeprefix("file://"))
    assert page.is_file() and (page.parent / "reward.png").is_file()
    assert "reward.png" not in page.read_text()
