#!/usr/bin/env python3
"""The page in a real browser, against a running gateway: FIRN_URL=http://127.0.0.1:8080 page_test.py [SCREENSHOTS]

Needs `pip install playwright` and a Chromium: the one that FIRN_CHROMIUM names, that of the system, or Playwright's own.
A model must be tuned so far that it answers otherwise than the base. FIRN_STAGE names the gateway's stage if it is a folder
here; then what the page keeps is looked for there.
Exits with 0 only if everything holds; else says in one line what does not.
"""

import json
import os
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, expect, sync_playwright

URL = os.environ.get("FIRN_URL", "http://127.0.0.1:8080").rstrip("/")
SHOTS = Path(sys.argv[1]) if len(sys.argv) > 1 else None
VIEWS = ["chat", "compare", "jobs", "models", "data"]
LISTS = VIEWS[2:]
STAGE = Path(os.environ["FIRN_STAGE"]) if "FIRN_STAGE" in os.environ else None
# The CPU of a CI machine answers slowly, and is shared.
ANSWER_MS = 120_000
JOB_MS = 180_000
WIDE, NARROW = {"width": 1280, "height": 860}, {"width": 390, "height": 800}


class Failure(Exception):
    """Something does not hold."""


def check(condition: object, message: str) -> None:
    if not condition:
        raise Failure(message)


def shot(page: Page, name: str) -> None:
    if SHOTS:
        SHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SHOTS / f"{name}.png")


class Watch:
    """What a page asked for and complained about."""

    def __init__(self, page: Page) -> None:
        self.foreign: list[str] = []
        self.complaints: list[str] = []
        self.answers: list[tuple[str, float]] = []
        own = urlsplit(URL).netloc
        page.on("request", lambda request: self.request(request, own))
        page.on("requestfinished", lambda request: self.note("end", request))
        page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def request(self, request, own: str) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and parts.netloc != own:
            self.foreign.append(request.url)
        self.note("begin", request)

    def note(self, what: str, request) -> None:
        if request.url.endswith("/v1/chat/completions"):
            self.answers.append((what, request.timing["startTime"]))

    def check(self, where: str) -> None:
        check(not self.foreign, f"{where}: the page asks others: {self.foreign}")
        check(not self.complaints, f"{where}: the console has errors: {self.complaints}")


def opened(browser: Browser, viewport: dict, scheme: str = "light") -> tuple[Page, Watch]:
    page = browser.new_context(viewport=viewport, color_scheme=scheme).new_page()
    watch = Watch(page)
    page.goto(URL + "/", wait_until="networkidle")
    return page, watch


def go(page: Page, view: str) -> None:
    page.locator(f"#tab-{view}").click()
    expect(page.locator(f"#{view}")).to_be_visible()
    page.wait_for_load_state("networkidle")


def ask(page: Page, view: str, text: str) -> None:
    area = page.locator(f"#{view} .composer textarea")
    area.fill(text)
    area.press("Enter")


def answered(page: Page, view: str) -> None:
    expect(page.locator(f"#{view} .composer .stop")).to_be_hidden(timeout=ANSWER_MS)


def no_sideways(page: Page, where: str) -> None:
    wider = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    check(wider <= 0, f"{where}: the page is {wider} px wider than the screen")


def open_first(page: Page, view: str) -> bool:
    """Opens the first job, version or snapshot that is listed; a fresh stage has none."""
    link = page.locator(f"#{view} a[href^='#/{view}/']").first
    if not link.count():
        return False
    link.click()
    expect(page.locator(f"#{view} .page h1")).to_be_visible()
    page.wait_for_timeout(500)
    return True


def loads(page: Page, watch: Watch) -> None:
    expect(page).to_have_title(re.compile("Firn"))
    options = page.locator("#chat select option")
    expect(options.first).not_to_have_text("…")
    check(options.count() >= 2, "the page lists no model")
    for view in VIEWS:
        go(page, view)
        check(page.locator("main > section:visible").count() == 1, f"{view}: not exactly one part is shown")
        named = page.evaluate(
            """view => [...document.querySelectorAll(`#${view} :is(input, textarea, select, button, a[href])`)]
                .filter(each => each.checkVisibility() && !(each.labels?.length || each.textContent.trim()
                    || each.getAttribute('aria-label') || each.title)).map(each => each.outerHTML)""",
            view,
        )
        check(not named, f"{view}: controls without a name: {named}")
        shot(page, f"wide-light-{view}")
        if view in LISTS and open_first(page, view):
            shot(page, f"wide-light-{view}-one")
    watch.check("on the way through all parts")


def chats(page: Page) -> None:
    go(page, "chat")
    page.evaluate(
        """() => { window.lengths = new Set(); new MutationObserver(() => {
            const text = document.querySelector('#chat .answer .text'); if (text) window.lengths.add(text.textContent.length);
        }).observe(document.querySelector('#chat .log'), { childList: true, subtree: true, characterData: true }); }"""
    )
    ask(page, "chat", "Which city is it?")
    answered(page, "chat")
    answer = page.locator("#chat .answer").last
    expect(answer.locator(".error")).to_be_hidden()
    text = answer.locator(".text").inner_text()
    check(text.strip(), "the answer is empty")
    expect(answer.locator(".meta")).to_contain_text("first token")
    steps = page.evaluate("[...window.lengths].filter(Boolean).length")
    check(steps > 1 or len(text) < 8, f"the answer of {len(text)} characters came in {steps} piece(s): it is not streamed")
    shot(page, "chat-answer")


def shows_prompt(page: Page) -> None:
    page.locator("#chat .composer").get_by_role("button", name="Show prompt").click()
    panel = page.locator("#chat .prompt-panel")
    expect(panel.locator("header strong")).to_contain_text(re.compile(r"\d+ of [\d,]+ tokens"))
    expect(panel.locator("pre")).to_contain_text("Which city is it?")
    shot(page, "chat-prompt")
    page.locator("#chat .composer").get_by_role("button", name="Hide prompt").click()
    expect(panel).to_be_hidden()


def compares(page: Page, watch: Watch) -> None:
    go(page, "compare")
    watch.answers.clear()
    ask(page, "compare", "Which city is it?")
    answered(page, "compare")
    answers = page.locator("#compare .answer")
    check(answers.count() == 2, f"{answers.count()} answers instead of two")
    for at in range(2):
        check(answers.nth(at).locator(".text").inner_text().strip(), f"answer {at + 1} of two is empty")
        expect(answers.nth(at).locator(".meta")).to_contain_text("first token")
    begun = [what for what, _ in watch.answers[:2]]
    check(begun == ["begin", "begin"], f"the models were not asked at once: {begun}")
    shot(page, "compare-answers")


def rows_of_votes(page: Page) -> int:
    return page.evaluate("async () => (await (await fetch('v1/votes')).json()).rows")


def round_of(page: Page, prompt: str) -> tuple:
    """Asks all models, and gives the round, its ballot and both texts."""
    go(page, "compare")
    ask(page, "compare", prompt)
    answered(page, "compare")
    last = page.locator("#compare .round").last
    ballot = last.get_by_role("group", name="Which answer is better?")
    texts = last.locator(".answer .text").all_inner_texts()
    check(len(set(texts)) == 2, f"both models answer {texts[0]!r}: there is nothing to vote on")
    expect(ballot).to_be_visible()
    return last, ballot, texts


def votes(page: Page) -> None:
    before = rows_of_votes(page)
    kept: list[tuple] = []
    # By a button.
    last, ballot, (left, right) = round_of(page, "Which city?")
    check(ballot.get_by_role("button").all_inner_texts() == ["← Left is better", "Tie", "Right is better →"], "the buttons")
    ballot.get_by_role("button", name="Right is better").click()
    expect(last.get_by_role("status")).to_contain_text("is better")
    check(last.locator(".answer.chosen .text").inner_text() == right, "the answer that was voted for is not marked")
    kept.append(("Which city?", right, left))
    expect(page.locator("#compare .votes")).to_contain_text(f"{before + 1} vote")
    # By keyboard alone, from the prompt and back to it.
    last, ballot, (left, right) = round_of(page, "Which bay?")
    page.locator("#compare .composer textarea").focus()
    wanted = ballot.get_by_role("button", name="Left is better")
    for _ in range(30):
        page.keyboard.press("Shift+Tab")
        if wanted.evaluate("each => each === document.activeElement"):
            break
    expect(wanted).to_be_focused()
    page.keyboard.press("Enter")
    expect(last.get_by_role("status")).to_contain_text("is better")
    expect(page.locator("#compare .composer textarea")).to_be_focused()
    kept.append(("Which bay?", left, right))
    expect(page.locator("#compare .votes")).to_contain_text(f"{before + 2} votes kept")
    # A tie is no row, and who does not know the names learns them by the vote.
    last, ballot, _ = round_of(page, "Which city is it?")
    ballot.get_by_role("button", name="Tie").click()
    expect(last.get_by_role("status")).to_contain_text("A tie")
    blind = page.get_by_role("switch", name="Hide names until I vote")
    blind.check()
    last, ballot, (left, right) = round_of(page, "Which hill?")
    check(last.locator(".answer h2").all_inner_texts() == ["Answer A", "Answer B"], "the names are not hidden")
    shot(page, "compare-vote")
    ballot.get_by_role("button", name="Left is better").click()
    expect(last.get_by_role("status")).to_contain_text("A is better, which was ")
    check(all("@" in name or "base" in name for name in last.locator(".answer h2").all_inner_texts()), "the names stay hidden")
    blind.uncheck()
    kept.append(("Which hill?", left, right))
    expect(page.locator("#compare .votes")).to_contain_text(f"{before + 3} votes kept")
    shot(page, "compare-voted")
    check(rows_of_votes(page) == before + 3, f"{rows_of_votes(page)} votes are kept of {before + 3}")
    page.reload(wait_until="networkidle")
    expect(page.locator("#compare .votes")).to_contain_text(f"{before + 3} votes kept")
    if STAGE:
        files = sorted((STAGE / "inputs/collections/votes").glob("*.jsonl"))
        rows = [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines() if line]
        found = [(row["prompt"][-1]["content"], row["chosen"].strip(), row["rejected"].strip()) for row in rows[before:]]
        wanted = [(prompt, chosen.strip(), rejected.strip()) for prompt, chosen, rejected in kept]
        check(found == wanted, f"the stage has {found} instead of {wanted}")


def trains_on_votes(page: Page) -> None:
    go(page, "compare")
    page.locator("#compare .votes").get_by_role("button", name="Train on").click()
    dialog = page.get_by_role("dialog", name="Train on votes")
    expect(dialog).to_contain_text("(DPO)")
    dialog.get_by_label("Name of the model").fill("liked")
    shot(page, "compare-train")
    dialog.get_by_role("button", name="Train").click()
    page.wait_for_url("**/#/jobs/job-*")
    one = page.locator("#jobs .page")
    expect(one.locator("h1")).to_have_text("liked")
    expect(one.locator(".head .chip")).to_have_text(re.compile("succeeded|failed"), timeout=JOB_MS)
    shot(page, "job-of-votes")
    check(one.locator(".head .chip").inner_text() == "succeeded", f"the job of the votes: {one.inner_text()[:600]}")
    # Its curves, its events, and what was asked for.
    expect(one.locator(".chart").first).to_be_visible()
    events = one.get_by_role("region", name="Events").locator("li")
    expect(events.last).to_contain_text("succeeded")
    one.get_by_text("What was asked for").click()
    for words in ["dpo", "inputs/collections/votes", "preference"]:
        expect(one.locator("details .facts").last).to_contain_text(words)
    expect(one.get_by_role("link", name="See the version")).to_be_visible()
    go(page, "jobs")
    listed = page.locator("#jobs .job").filter(has=page.get_by_role("link", name="liked"))
    expect(listed.locator(".chip").first).to_have_text("succeeded")
    shot(page, "jobs-after-votes")


def proves_merge(page: Page) -> None:
    go(page, "models")
    page.locator("#models a[href^='#/models/tried/']").first.click()
    merge = page.locator("#models [data-part=merge]")
    expect(merge).to_contain_text("largest logit difference")
    expect(merge).to_contain_text("computes the same")
    expect(merge).to_contain_text(re.compile(r"same most probable token\s*\d+(\.\d)? %"))
    merge.scroll_into_view_if_needed()
    shot(page, "version-merge")


def keyboard(page: Page) -> None:
    page.locator("#tab-chat").focus()
    for view in [*VIEWS[1:], VIEWS[0]]:
        page.keyboard.press("ArrowRight")
        expect(page.locator(f"#tab-{view}")).to_be_focused()
        expect(page.locator(f"#{view}")).to_be_visible()
    page.keyboard.press("/")
    area = page.locator("#chat .composer textarea")
    expect(area).to_be_focused()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    check(area.input_value() == "one\ntwo", f"Shift+Enter made {area.input_value()!r}")
    before = page.locator("#chat .answer").count()
    page.keyboard.press("Enter")
    expect(page.locator("#chat .answer")).to_have_count(before + 1)
    check(area.input_value() == "", "Enter left the message in its place")
    page.keyboard.press("Escape")
    expect(page.locator("#chat .composer .stop")).to_be_hidden(timeout=10_000)
    page.locator("#tab-chat").focus()
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#keys")).to_be_hidden()


def text_stays_text(page: Page) -> None:
    go(page, "chat")
    sent = '<img src=x onerror="window.broken = 1"><b>bold</b>'
    ask(page, "chat", sent)
    answered(page, "chat")
    expect(page.locator("#chat .question").last).to_have_text(sent)
    check(page.locator("#chat .log :is(img, b:not(.stat b))").count() == 0, "text became markup")
    check(page.evaluate("window.broken") is None, "text became code")


def narrow(browser: Browser) -> None:
    page, watch = opened(browser, NARROW)
    for view in VIEWS:
        go(page, view)
        no_sideways(page, f"{view} at {NARROW['width']} px")
        shot(page, f"narrow-light-{view}")
        if view in LISTS and open_first(page, view):
            no_sideways(page, f"one of {view} at {NARROW['width']} px")
            shot(page, f"narrow-light-{view}-one")
    go(page, "compare")
    ask(page, "compare", "Which city? " + "unbroken" * 40)
    answered(page, "compare")
    no_sideways(page, "answers side by side on a phone")
    shot(page, "narrow-compare-answers")
    watch.check("on a phone")


def dark(page: Page, browser: Browser) -> None:
    def colours(of: Page) -> list[str]:
        return of.evaluate(
            """() => [getComputedStyle(document.documentElement).backgroundColor, getComputedStyle(document.body).color,
                getComputedStyle(document.querySelector('.composer textarea')).backgroundColor]"""
        )

    night, watch = opened(browser, WIDE, "dark")
    light, dim = colours(page), colours(night)
    check(all(a != b for a, b in zip(light, dim)), f"light has {light}, dark {dim}")
    for view in VIEWS:
        go(night, view)
        shot(night, f"wide-dark-{view}")
    night.locator("#theme").click()
    check(colours(night) == light, "the switch to light colours does not switch")
    watch.check("in the dark")


def chromium() -> str | None:
    named = os.environ.get("FIRN_CHROMIUM")
    return named or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def main() -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page, watch = opened(browser, WIDE)
        steps = [
            ("loads", lambda: loads(page, watch)),
            ("chats", lambda: chats(page)),
            ("shows the prompt", lambda: shows_prompt(page)),
            ("compares", lambda: compares(page, watch)),
            ("counts votes", lambda: votes(page)),
            ("trains on votes", lambda: trains_on_votes(page)),
            ("shows that a merge computes the same", lambda: proves_merge(page)),
            ("goes by keyboard", lambda: keyboard(page)),
            ("keeps text text", lambda: text_stays_text(page)),
            ("fits a phone", lambda: narrow(browser)),
            ("has dark colours", lambda: dark(page, browser)),
            ("asks nobody else and complains of nothing", lambda: watch.check("at the end")),
        ]
        for name, step in steps:
            try:
                step()
            except Exception as error:
                shot(page, "failure")
                reason = str(error) if isinstance(error, Failure) else f"{type(error).__name__}: {error}"
                sys.exit(f"the page fails where it {name}: {reason}")
            print(f"the page {name}")
        browser.close()


if __name__ == "__main__":
    main()
