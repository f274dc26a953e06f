"""The pages in a real Chromium: report, comparison and the server's page, by mouse and by keyboard, narrow and wide,
light and dark, with hostile texts. Whatever a browser complains of fails the test."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

import rankwright
from rankwright.comparison import Side, compare_sides
from rankwright.reporting.compared import write_comparison
from rankwright.server.page import HEADERS
from tests.browser import NO_BROWSER, PHONE, StandIn, Window, absent, chromium, standing_in
from tests.cli_kit import key_reader, make_model, rows
from tests.report_kit import HARMLESS, HOSTILE, METRICS, make_evaluation, report_of, run_of
from tests.served import Served

Open = Callable[..., Window]
HOSTILE_TEXT = " ".join(HOSTILE)


@pytest.fixture(scope="module")
def browser() -> Iterator[Open]:
    with chromium() as opened:
        yield opened


def test_without_a_browser_tests_skip_and_continuous_integration_fails() -> None:
    allowed = Path(__file__).with_name("allowed-skips.txt").read_text("utf-8").splitlines()
    assert NO_BROWSER in allowed
    with pytest.raises(pytest.skip.Exception, match=re.escape(NO_BROWSER)):
        absent({})
    for promised in ("CI", "RANKWRIGHT_CI"):
        with pytest.raises(pytest.fail.Exception, match="must not pass"):
            absent({promised: "1"})


# --- the report --------------------------------------------------------------------------------------------------


def test_the_report_opens_sorts_by_keyboard_and_fits_a_phone(browser: Open, tmp_path: Path) -> None:
    report_of(tmp_path, make_evaluation(), run=run_of(HARMLESS), metrics=METRICS)
    window = browser(size=PHONE)
    page = window.page
    page.goto((tmp_path / "report.html").as_uri())
    column = "xpath=(//table[contains(@class, 'sortable')])[1]//tbody/tr/td[2]"
    window.tab_to("F1")
    page.keyboard.press("Enter")
    descending = [float(text[:5]) for text in page.locator(column).all_inner_texts()]
    page.keyboard.press("Enter")
    ascending = [float(text[:5]) for text in page.locator(column).all_inner_texts()]
    assert descending == sorted(ascending, reverse=True)
    assert descending[0] > descending[-1]
    assert window.overflow() == 0
    assert window.problems == []
    assert len(window.requests) == 1


# --- the comparison ----------------------------------------------------------------------------------------------


def compared(folder: Path, text: str = HARMLESS, n: int = 16, wins: float = 0.8125) -> str:
    """The address of a comparison in which all but some questions are won, and the last one cannot be compared."""
    evaluation = make_evaluation(text, n=n, wins=wins)
    first, second, _ = evaluation.models
    sides = Side(f"base{text}", evaluation, first), Side(f"mine{text}", evaluation, second)
    return write_comparison(folder / "comparison.html", compare_sides(*sides)).as_uri()


def says(window: Window, words: str) -> None:
    """Waits until the list says so; a new address is taken in a moment later."""
    window.page.get_by_role("status").get_by_text(words, exact=True).wait_for()


def lists(window: Window, questions: list[str]) -> None:
    """Waits until the list has these questions in this order."""
    expect(window.page.locator("ol.questions summary > bdi")).to_have_text(questions)


def test_questions_are_filtered_searched_and_sorted_and_the_address_keeps_it(browser: Open, tmp_path: Path) -> None:
    window = browser()
    page = window.page
    page.goto(compared(tmp_path))
    says(window, "1 to 16 of 16, by F1.")
    labels = [text.split() for text in page.locator("fieldset label:visible").all_inner_texts()]
    assert labels == [["all", "16"], ["won", "13"], ["lost", "2"], ["same", "0"], ["not", "compared", "1"]]
    page.get_by_label("lost").check()
    says(window, "1 to 2 of 2, by F1.")
    lists(window, [f"{HARMLESS} question {i}?" for i in (13, 14)])
    page.get_by_label("By").select_option("nDCG@10")
    says(window, "1 to 3 of 3, by nDCG@10.")  # the read of the last one failed, but it was ranked
    page.get_by_label("Sort").select_option("text")
    page.wait_for_url("**sort=text**")
    lists(window, [f"{HARMLESS} question {i}?" for i in (13, 14, 15)])
    page.get_by_label("Search").fill("QUESTION 14")
    says(window, "1 to 1 of 1, by nDCG@10.")
    lists(window, [f"{HARMLESS} question 14?"])

    another = browser()
    another.page.goto(page.url)
    says(another, "1 to 1 of 1, by nDCG@10.")
    lists(another, [f"{HARMLESS} question 14?"])
    assert another.page.get_by_label("Search").input_value() == "QUESTION 14"
    page.get_by_label("Search").fill("QUESTION 13")
    page.wait_for_url("**QUESTION+13**")
    page.go_back()  # a search is one step back, however it was typed
    says(window, "1 to 3 of 3, by nDCG@10.")
    assert (page.get_by_label("Search").input_value(), page.get_by_label("Sort").input_value()) == ("", "text")
    page.go_back()
    says(window, "1 to 3 of 3, by nDCG@10.")
    assert page.get_by_label("Sort").input_value() == "change"
    assert window.problems + another.problems == []


def test_a_question_shows_both_rankings_answers_and_values(browser: Open, tmp_path: Path) -> None:
    window = browser()
    page = window.page
    page.goto(compared(tmp_path))
    page.get_by_text(f"{HARMLESS} question 0?").click()
    opened = page.locator("details[open]")
    expect(opened.locator(".sides > div")).to_have_count(2)
    before, after = opened.locator(".sides > div").all()
    assert f"Answer: wrong {HARMLESS}" in before.inner_text()
    assert "Answer: right" in after.inner_text()
    assert "EM 0.000 → 1.000" in opened.locator(".values").inner_text()
    first = after.locator("ol.ranking > li").first
    assert [tag.inner_text() for tag in first.locator(".tag").all()] == ["gold", "has answer"]
    assert "was 12" in first.inner_text()  # of twelve candidates the last
    assert "the right passage" in first.inner_text()
    assert before.locator("li.more").inner_text() == "and 2 more"
    assert before.locator("li.cut").count() == 1
    assert page.locator("#share").inner_text().split() == [
        "won",
        "13",
        "(87%)",
        "same",
        "0",
        "(0%)",
        "lost",
        "2",
        "(13%)",
    ]
    page.get_by_text("Link to this question").click()
    linked = browser()
    linked.page.goto(page.url)
    assert linked.page.locator("details[open] summary > bdi").inner_text() == f"{HARMLESS} question 0?"
    assert window.problems + linked.problems == []


def test_long_lists_come_in_pages_and_links_lead_to_the_right_one(browser: Open, tmp_path: Path) -> None:
    window = browser()
    page = window.page
    address = compared(tmp_path, n=120)
    page.goto(address + "#sort=given")
    assert page.get_by_role("button", name="Previous").get_attribute("aria-disabled") == "true"
    page.get_by_role("button", name="Next").click()
    says(window, "51 to 100 of 120, by F1.")
    page.get_by_role("button", name="Next").click()
    says(window, "101 to 120 of 120, by F1.")
    page.get_by_role("button", name="Next").click(force=True)  # there is nothing beyond
    says(window, "101 to 120 of 120, by F1.")
    page.goto(f"{address}#sort=given&open=q70{HARMLESS}")
    says(window, "51 to 100 of 120, by F1.")
    assert page.locator("details[open] summary > bdi").inner_text() == f"{HARMLESS} question 70?"
    page.goto(f"{address}#show=nonsense&sort=__proto__&metric=x&page=-5&open=nobody")
    says(window, "Question nobody is not among these. 1 to 50 of 120, by F1.")
    assert window.problems == []


def test_the_comparison_is_used_without_a_mouse(browser: Open, tmp_path: Path) -> None:
    window = browser()
    page = window.page
    page.goto(compared(tmp_path))
    window.tab_to("show=all")
    page.keyboard.press("ArrowDown")
    says(window, "1 to 13 of 13, by F1.")
    page.keyboard.press("ArrowDown")
    says(window, "1 to 2 of 2, by F1.")
    assert window.focused() == "show=lost"
    page.keyboard.press("Tab")
    page.keyboard.type("question 13")
    says(window, "1 to 1 of 1, by F1.")
    for _ in range(3):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("details[open] .sides > div").nth(1).wait_for()
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"  # where the keyboard is can be seen
    assert window.problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_comparison_is_readable_on_a_phone_by_day_and_night(browser: Open, tmp_path: Path, scheme: str) -> None:
    window = browser(size=PHONE, scheme=scheme)
    window.page.goto(compared(tmp_path, text="Wortungetuemlichkeitsbezeichnungswesenverwaltungsvorschrift"))
    window.page.locator("summary").first.click()
    window.page.locator("details[open] .sides").wait_for()
    assert window.overflow() == 0
    dark = sum(window.background()) < 3 * 128
    assert dark == (scheme == "dark")
    assert window.problems == []


def test_hostile_texts_stay_texts_in_the_comparison(browser: Open, tmp_path: Path) -> None:
    structures, windows = [], []
    for text in (HARMLESS, HOSTILE_TEXT):
        folder = tmp_path / str(len(windows))
        window = browser()
        window.page.goto(compared(folder, text, n=3))
        for question in window.page.locator("details").all():
            question.locator("summary").click()
            question.locator(".sides").wait_for()
        structures.append(window.structure())
        windows.append(window)
    assert structures[0] == structures[1]
    assert windows[1].problems == []
    assert "<img src=x onerror=alert(1)>" in windows[1].page.locator("details[open]").first.inner_text()


def test_without_scripts_verdict_and_tests_are_there(browser: Open, tmp_path: Path) -> None:
    window = browser(javascript=False)
    window.page.goto(compared(tmp_path))
    words = window.page.locator("main").inner_text()
    assert "Better: mine" in words
    assert "nDCG@10" in words
    assert "needs JavaScript" in words


# --- the server's page -------------------------------------------------------------------------------------------

PASSAGES = ["one passage", "another passage", "a third one"]


@pytest.fixture
def server() -> Iterator[tuple[str, StandIn]]:
    with standing_in() as found:
        yield found


def enter(window: Window, address: str, key: str = "right-key") -> None:
    """Opens the page and gives the key."""
    window.page.goto(address)
    window.page.get_by_label("API key").fill(key)
    window.page.get_by_role("button", name="Use this key").click()


def ask(window: Window, passages: str = "\n".join(PASSAGES), question: str = "which?") -> None:
    window.page.get_by_label("Question", exact=True).fill(question)
    window.page.get_by_label("Passages", exact=True).fill(passages)
    window.page.get_by_role("button", name="Rank").click()


def ranked(window: Window) -> None:
    window.page.get_by_text(re.compile("passages ranked by")).wait_for()


def sides(window: Window) -> list[list[str]]:
    """The lines of every ranking, one list a model."""
    return [side.locator("ol > li").all_inner_texts() for side in window.page.locator(".side").all()]


REFUSED = "error: Failed to load resource: the server responded with a status of {} ({})"
UNAUTHORIZED = REFUSED.format(401, "Unauthorized")
"""What Chromium itself says of a refused request."""


def test_two_models_rank_beside_each_other(browser: Open, server: tuple[str, StandIn]) -> None:
    address, said = server
    said.truncated = [1]
    window = browser()
    enter(window, address)
    window.page.get_by_text("Serving straight (stub, 128 tokens) and reversed").wait_for()
    ask(window)
    ranked(window)
    straight, other = sides(window)
    assert [next(p for p in PASSAGES if p in line) for line in straight] == PASSAGES
    assert [next(p for p in PASSAGES if p in line) for line in other] == PASSAGES[::-1]
    assert "raw 2.00" in straight[0]
    assert "0.881" in straight[0]  # 1 / (1 + exp(-2))
    assert "▼ 2 given as 1" in other[2].replace("\n", " ")
    assert "▲ 2 at straight 3" in other[0].replace("\n", " ")
    assert ["cut, 7 tokens were read" in line for line in straight] == [False, True, False]
    timing = window.page.locator(".side > p").first.inner_text()
    assert timing.startswith("12 ms scoring, 0.3 ms waiting, ")
    answers = window.page.locator(".reading")
    answers.nth(1).get_by_text("an answer").wait_for()
    read = [body["documents"] for body in said.asked if "model" not in body]
    assert sorted(read) == sorted([PASSAGES[:2], PASSAGES[:0:-1]])
    assert window.problems == [UNAUTHORIZED]  # the first look, before the key was given
    assert {url.split("/")[2] for url in window.requests} == {address.split("/")[2]}


def test_a_wrong_key_is_said_and_asked_for_again(browser: Open, server: tuple[str, StandIn]) -> None:
    window = browser()
    enter(window, server[0], "wrong key")
    window.page.get_by_role("alert").get_by_text("There is no valid key. (status 401, request request-7)").wait_for()
    assert window.focused() == "key"
    assert window.page.evaluate("sessionStorage.length") == 0
    window.page.keyboard.type("right-key")
    window.page.keyboard.press("Enter")
    window.page.get_by_text("Serving straight").wait_for()
    assert window.page.get_by_role("alert").is_hidden()
    assert window.problems == [UNAUTHORIZED] * 2


def test_the_key_stays_in_the_tab(browser: Open, server: tuple[str, StandIn]) -> None:
    window = browser()
    enter(window, server[0])
    window.page.get_by_text("Serving straight").wait_for()
    window.page.reload()
    window.page.get_by_text("Serving straight").wait_for()  # not asked for again
    kept = "[localStorage.length, document.cookie, Object.values(sessionStorage).join()]"
    assert window.page.evaluate(kept) == [0, "", "right-key"]
    assert "right" not in window.page.url
    window.page.get_by_role("button", name="Forget it").click()
    assert window.page.evaluate("sessionStorage.length") == 0
    assert window.page.get_by_label("API key").is_visible()


def test_the_page_is_used_without_a_mouse_and_without_a_key_where_none_is_set(browser: Open) -> None:
    with standing_in(key=None, reader=None) as (address, said):
        window = browser()
        page = window.page
        page.goto(address)
        page.get_by_text("Serving straight").wait_for()
        assert page.get_by_label("API key").is_hidden()
        window.tab_to("question")
        page.keyboard.type("which?")
        page.keyboard.press("Tab")
        page.keyboard.type("x\ny")
        page.keyboard.press("Tab")
        assert window.focused() == "first"
        page.keyboard.press("Tab")
        page.keyboard.press("ArrowUp")  # of none, straight, reversed
        page.keyboard.press("ArrowUp")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        ranked(window)
        assert len(sides(window)) == 1
        assert [body["documents"] for body in said.asked] == [["x", "y"]]
        window.tab_to("example")
        page.keyboard.press("Enter")
        assert window.focused() == "rank"
        page.keyboard.press("Enter")
        page.get_by_text("6 passages ranked by straight.").wait_for()
        assert page.locator(".reading").count() == 0
        assert window.problems == []


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        ("one\n\n two \nthree\n", ["one", "two \nthree"]),
        ("one\ntwo", ["one", "two"]),
        ('["a", {"text": "b", "title": "B"}]', ["a", {"text": "b", "title": "B"}]),
        ('{"documents": [{"text": "c"}]}', ["c"]),
        ("[1] a note in brackets", ["[1] a note in brackets"]),
    ],
)
def test_passages_are_lines_blocks_or_json(
    browser: Open, server: tuple[str, StandIn], typed: str, sent: list[object]
) -> None:
    window = browser()
    enter(window, server[0])
    window.page.get_by_text("Serving straight").wait_for()
    ask(window, typed)
    ranked(window)
    assert server[1].asked[0]["documents"] == sent


def test_what_goes_wrong_is_said_plainly(browser: Open, server: tuple[str, StandIn]) -> None:
    address, said = server
    said.documents = 3
    window = browser()
    enter(window, address)
    window.page.get_by_text("Serving straight").wait_for()
    alert = window.page.get_by_role("alert")
    ask(window, "a\nb\nc\nd")
    alert.get_by_text("There are 4 passages; this server takes 3 at once.").wait_for()
    ask(window, '["a", ')
    alert.get_by_text("The passages look like JSON but are not").wait_for()
    ask(window, '["a", 7]')
    alert.get_by_text("Passage 2 is neither a text nor an object").wait_for()
    assert said.asked == []
    said.refusal = (429, "Too many wait.", {"retry-after": "3"})
    ask(window)
    alert.get_by_text("Too many wait. (status 429, request request-7) Try again in 3 s.").wait_for()
    said.refusal, said.answer = None, None
    ask(window)
    ranked(window)
    assert alert.is_hidden()
    window.page.get_by_text("failed: The reader failed: timeout.").first.wait_for()
    assert {problem.partition(" (")[0] for problem in window.problems} == {
        REFUSED.format(code, "").partition(" (")[0] for code in (401, 429, 502)
    }


def test_a_server_that_does_not_answer_is_said(browser: Open) -> None:
    with standing_in(key=None) as (address, said):
        window = browser()
        window.page.goto(address)
        window.page.get_by_text("Serving straight").wait_for()
        window.page.route("**/v1/rerank", lambda route: route.abort())
        ask(window)
        window.page.get_by_role("alert").get_by_text("The server did not answer.").wait_for()
        window.page.unroute("**/v1/rerank")
        window.page.route("**/v1/rerank", lambda route: None)
        ask(window)
        window.page.get_by_role("button", name="Stop").click()
        window.page.get_by_text("Stopped.").wait_for()
        assert said.asked == []
        assert window.page.get_by_role("alert").is_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_readable_on_a_phone_by_day_and_night(browser: Open, scheme: str) -> None:
    word = "Wortungetuemlichkeitsbezeichnungswesenverwaltungsvorschrift"
    with standing_in(key=None, models=(word, f"{word}2"), answer=word, truncated=[0]) as (address, _):
        window = browser(size=PHONE, scheme=scheme)
        window.page.goto(address)
        window.page.get_by_text("Serving").wait_for()
        ask(window, f"{word}\n{word} {word}", word)
        ranked(window)
        assert window.overflow() == 0
        dark = sum(window.background()) < 3 * 128
        assert dark == (scheme == "dark")
        assert window.problems == []


def test_hostile_texts_stay_texts_on_the_page(browser: Open) -> None:
    structures = []
    for text in (HARMLESS, HOSTILE_TEXT):
        title = {"text": text, "title": text}
        reader = {"name": text, "top_k": 2}
        with standing_in(key=None, models=(f"a{text}", f"b{text}"), reader=reader, answer=text) as (address, said):
            window = browser()
            window.page.goto(address)
            window.page.get_by_text("Serving").wait_for()
            ask(window, json.dumps([title, *PASSAGES]), text.replace("\n", " "))
            ranked(window)
            window.page.locator(".said", has_text="alert(1)" if text != HARMLESS else text).nth(1).wait_for()
            structures.append(window.structure())
            assert window.problems == []
            said.refusal = (422, text, {})
            window.page.get_by_role("button", name="Rank").click()
            window.page.get_by_role("alert").get_by_text("(status 422").wait_for()
            structures.append(window.structure())
    assert structures[0] == structures[2]
    assert structures[1] == structures[3]


def test_the_page_of_a_real_server_shows_what_its_models_and_its_reader_say(browser: Open, tmp_path: Path) -> None:
    models = {"first": make_model(tmp_path / "first"), "second": make_model(tmp_path / "second", seed=1)}
    question, long = "What is the key of door 12?", "door " * 60
    passages = [row["text"] for row in rows()[2]["candidates"]] + [long.strip()]
    with key_reader() as endpoint:
        command = ["serve", *map(str, models.values()), "--reader", endpoint, "--reader-model", "stub", "--top-k", "2"]
        begun = [sys.executable, "-m", "rankwright.cli", *command]
        keys = {"RANKWRIGHT_API_KEY": "right-key", "OPENAI_API_KEY": "key-of-the-reader"}
        with Served(lambda port: [*begun, "--port", str(port)], tmp_path, "/ready", keys) as served:
            window = browser()
            enter(window, f"{served.url}/", "wrong key")
            window.page.get_by_role("alert").wait_for()
            enter(window, f"{served.url}/")
            window.page.get_by_text("Serving first (torch, 48 tokens) and second").wait_for()
            ask(window, "\n".join(passages), question)
            ranked(window)
            for lines, answer, folder in zip(sides(window), answers(window, 2), models.values(), strict=True):
                ranking = rankwright.load(folder).rerank(question, passages)
                order = [passages[int(doc_id)] for doc_id in ranking.doc_ids]
                assert [line.splitlines()[-1] for line in lines] == order
                for score, line in zip(ranking.scores, lines, strict=True):
                    assert f"raw {score:.2f}" in line
                    assert f"{1 / (1 + math.exp(-score)):.3f}" in line  # the scale of the API, as documented
                assert ["cut" in line for line in lines] == [text == long.strip() for text in order]
                assert answer == ("word12" if passages[2] in order[:2] else "(none found)")
            assert set(window.problems) == {UNAUTHORIZED}
            assert all(url.startswith(f"{served.url}/") for url in window.requests)
            sent = window.page.request.get(f"{served.url}/page.js").headers
            assert {name: sent[name.lower()] for name in HEADERS} == HEADERS


def answers(window: Window, count: int) -> list[str]:
    """What the reader said to each ranking, once it has."""
    said = window.page.locator(".said", has_not_text=re.compile("^…$"))
    said.nth(count - 1).wait_for()
    return said.all_inner_texts()


def test_nothing_but_the_own_script_may_run(browser: Open, server: tuple[str, StandIn]) -> None:
    """The policy holds in the browser, not only in the header."""
    window = browser()
    window.page.goto(server[0])
    tries = (
        "const made = document.createElement('script'); made.text = RUN; document.body.append(made)",
        "document.body.insertAdjacentHTML('beforeend', `<img src=x onerror='${RUN}'>`)",
        "document.body.setAttribute('onclick', RUN); document.body.click()",
        "const made = document.createElement('style'); made.textContent = 'p {top: 0}'; document.body.append(made)",
        "fetch('http://127.0.0.2:1/').catch(() => {})",
    )
    for attempt in tries:
        before = len(window.problems)
        guarded = f"try {{ {attempt} }} catch (error) {{ console.error(String(error)) }}"
        window.page.evaluate(f"() => {{ const RUN = 'document.title = 1'; {guarded} }}")
        for _ in range(250):  # what a browser says of it comes a moment later
            if window.problems[before:]:
                break
            window.page.wait_for_timeout(20)
        assert window.problems[before:], attempt
    assert window.page.title() == "rankwright"
