"""Every page of the dashboard in a real browser, against a service in a process of its own with a filled store."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from browser import PAGE_SECONDS, PHONE, FilledService, Visit, chromium, filled_service, visit, visit_in
from dashboard_world import MARKUP
from playwright.sync_api import Browser, BrowserContext, Locator, expect

from services.access.keys import Scope
from services.access.store import AccessStore
from services.jobs.state import JobState
from services.jobs.store import JobStore

KEY = "an-installation-key-of-thirty-two-characters"

TABS = ("Curves", "Signal", "Samples", "Answers", "Domains", "Fleet", "Events", "Versions")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FilledService]:
    with filled_service(tmp_path_factory.mktemp("filled")) as started:
        yield started


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FilledService]:
    """A service that asks for a key."""
    with filled_service(tmp_path_factory.mktemp("locked"), SPARRING_API_KEY=KEY) as started:
        yield started


@pytest.fixture
def store(service: FilledService) -> Iterator[JobStore]:
    """The service's store, as another process sees it."""
    opened = JobStore(f"sqlite:///{service.home / 'sparring.sqlite'}")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def settled(browser: Browser) -> Iterator[BrowserContext]:
    """A browser that keeps the service's scripts from test to test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield context
    context.close()


@pytest.fixture
def desk(settled: BrowserContext, service: FilledService) -> Iterator[Visit]:
    """A visitor at a desk."""
    with visit_in(settled, service.url) as visitor:
        yield visitor


def tab(visitor: Visit, name: str) -> Locator:
    """Open a tab; its panel."""
    visitor.page.get_by_role("tab", name=name, exact=True).click()
    return visitor.page.get_by_role("tabpanel").last


def test_the_list_shows_every_job_with_state_progress_and_best_win_rate(desk: Visit, service: FilledService) -> None:
    desk.open("/")
    row = desk.page.get_by_role("row", name=re.compile(service.ids["live"]))
    expect(row).to_contain_text("running")
    expect(row).to_contain_text("62% sampling")
    expect(row).to_contain_text(re.compile(r"7\d\.\d% \[7\d\.\d%, 8\d\.\d%\]"))
    for what, state in (("failed", "failed"), ("done", "succeeded"), ("paused", "paused"), ("queued", "queued")):
        expect(desk.page.get_by_role("row", name=re.compile(service.ids[what]))).to_contain_text(state)
    desk.save("jobs")


def test_the_list_is_filtered_by_state_and_by_words_in_names_and_labels(desk: Visit, service: FilledService) -> None:
    desk.open("/")
    rows = desk.page.locator("tbody tr")
    expect(rows).to_have_count(len(service.ids))
    desk.page.get_by_label("Name or label contains").fill("team=support")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text(service.ids["failed"])
    desk.page.get_by_label("Name or label contains").fill("nothing-like-it")
    expect(desk.page.get_by_text("No job fits the filter")).to_be_visible()
    desk.page.get_by_label("Name or label contains").fill("")
    desk.page.get_by_label("State").click()
    desk.page.get_by_role("option", name="queued").click()
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text(service.ids["queued"])


def test_the_list_and_a_curve_follow_the_store(desk: Visit, service: FilledService, store: JobStore) -> None:
    job_id = service.ids["domains"]
    desk.open("/")
    row = desk.page.get_by_role("row", name=re.compile(job_id))
    store.set_progress(job_id, 0.4, "learning")
    expect(row).to_contain_text("40% learning")
    desk.open(f"/jobs/{job_id}")
    chart = desk.page.get_by_role("figure", name="Loss")
    expect(chart).to_be_hidden()
    for step in range(3):
        store.add_metrics(job_id, {"loss": 0.5 - step / 10}, version=4, learner_step=step)
    expect(chart.locator("svg path").first).to_be_attached()
    before = chart.locator("svg").inner_html()
    store.add_metrics(job_id, {"loss": 7.0}, version=4, learner_step=9)
    expect(chart.locator("svg text").filter(has_text=re.compile("^[678]$")).first).to_be_visible()
    assert chart.locator("svg").inner_html() != before


def test_the_curves_of_a_job_are_drawn_and_the_bottleneck_is_named(desk: Visit, service: FilledService) -> None:
    desk.open(f"/jobs/{service.ids['live']}")
    for title in (
        "Win rate against version 0",
        "KL to version 0",
        "Entropy",
        "Loss",
        "Answer length",
        "Throughput of sampling",
        "Queue depth",
        "Staleness",
        "Where the time goes",
    ):
        expect(desk.page.get_by_role("figure", name=title, exact=True).locator("svg path").first).to_be_attached()
    expect(desk.page.get_by_role("figure", name="Win rate against version 0")).to_contain_text("length-controlled")
    expect(desk.page.get_by_text("Bottleneck: sampling")).to_be_visible()
    desk.save("job")


def test_a_tab_of_its_own_for_each_side_of_a_job(desk: Visit, service: FilledService) -> None:
    desk.open(f"/jobs/{service.ids['live']}")
    expect(tab(desk, "Signal")).to_contain_text("0.160 logits")
    answers = tab(desk, "Answers")
    expect(answers).to_contain_text("Choose Forgot password")
    expect(answers).to_contain_text(MARKUP)
    fleet = tab(desk, "Fleet")
    expect(fleet.get_by_role("row", name=re.compile("sampler-1"))).to_contain_text("fast v5")
    expect(fleet).to_contain_text("1 restart of sampler-1")
    expect(tab(desk, "Events")).to_contain_text("sampler-1 died: killed")
    versions = tab(desk, "Versions")
    expect(versions.get_by_role("row", name=re.compile("v5"))).to_contain_text("(best)")
    expect(tab(desk, "Domains")).to_contain_text("mixes all prompts")
    desk.page.wait_for_url(re.compile(r"\?tab=domains$"))


def test_a_job_without_an_evaluation_has_no_answers_yet(desk: Visit, service: FilledService) -> None:
    desk.open(f"/jobs/{service.ids['queued']}")
    expect(tab(desk, "Answers")).to_contain_text("No version has been evaluated yet.")


def test_new_events_come_on_top(desk: Visit, service: FilledService, store: JobStore) -> None:
    desk.open(f"/jobs/{service.ids['live']}?tab=events")
    rows = desk.page.get_by_role("tabpanel").last.locator("tbody tr")
    expect(rows.first).to_contain_text(MARKUP)
    store.append_event(service.ids["live"], "note", "something new")
    expect(rows.first).to_contain_text("something new")
    store.append_event(service.ids["live"], "warning", MARKUP)
    expect(rows.first).to_contain_text(MARKUP)


def test_a_sample_shows_its_answers_and_its_win_matrix(desk: Visit, service: FilledService) -> None:
    desk.open(f"/jobs/{service.ids['live']}?tab=samples")
    panel = desk.page.get_by_role("tabpanel").last
    panel.get_by_role("button", name=re.compile(r"Question 3\?")).click()
    expect(panel.get_by_role("heading", name="Round 0, #3")).to_be_visible()
    expect(panel).to_contain_text("Answer 1 · fast v0 · 2 tokens · stop · wins 78.8%")
    expect(panel).to_contain_text(MARKUP)
    matrix = panel.get_by_role("table")
    cells = [row.get_by_role("cell").all_inner_texts() for row in matrix.locator("tbody tr").all()]
    assert cells == [["", "88%", "98%"], ["12%", "", "88%"], ["2%", "12%", ""]]
    expect(matrix.get_by_role("cell", name="98%")).to_have_attribute("style", re.compile(r"rgba\(59, 125, 216"))


def test_domains_are_a_matrix_of_each_judge(desk: Visit, service: FilledService) -> None:
    desk.open(f"/jobs/{service.ids['domains']}?tab=domains")
    matrix = desk.page.get_by_role("table", name="Win rate on held-out prompts, by the scorer")
    expect(matrix.get_by_role("columnheader", name="late fees/eu")).to_be_visible()
    expect(matrix.get_by_role("row", name="v4, after late fees/eu")).to_contain_text("90%")
    expect(desk.page.get_by_text("forgetting +10.0%")).to_be_visible()


def test_a_version_downloads_over_the_rest_route(desk: Visit, service: FilledService) -> None:
    desk.open(f"/jobs/{service.ids['live']}")
    with desk.page.expect_download() as download:
        desk.page.get_by_role("link", name="Download the adapter").click()
    assert download.value.suggested_filename == f"{service.ids['live']}-fast-v5.zip"


def test_pause_and_cancel_ask_the_controller_and_resume_takes_the_pause_back(
    desk: Visit, service: FilledService, store: JobStore
) -> None:
    job_id = service.ids["live"]
    desk.open(f"/jobs/{job_id}")
    desk.page.get_by_role("button", name="Pause").click()
    expect(desk.page.get_by_text("running, pausing")).to_be_visible()
    assert store.take_request(job_id) == "pause"
    store.transition(job_id, JobState.PAUSED)
    desk.page.get_by_role("button", name="Resume").click()
    expect(desk.page.get_by_text("paused, going on")).to_be_visible()
    assert store.take_request(job_id) == "continue"
    store.transition(job_id, JobState.RUNNING)
    desk.page.get_by_role("button", name="Cancel").click()
    desk.page.get_by_role("button", name="Keep it running").click()
    assert store.get(job_id).requested is None
    other = service.ids["queued"]
    desk.open(f"/jobs/{other}")
    desk.page.get_by_role("button", name="Cancel").click()
    desk.page.get_by_role("button", name="Cancel the job").click()
    expect(desk.page.get_by_text("cancelled", exact=True)).to_be_visible()
    desk.page.get_by_role("button", name="Resume").click()
    expect(desk.page.get_by_text("queued", exact=True)).to_be_visible()


def test_what_is_done_on_a_page_is_in_the_audit(desk: Visit, service: FilledService) -> None:
    job_id = service.ids["failed"]
    desk.open(f"/jobs/{job_id}")
    expect(desk.page.get_by_role("alert").first).to_contain_text("nothing moved for 600 s")
    desk.page.get_by_role("button", name="Resume").click()
    expect(desk.page.get_by_text("queued", exact=True)).to_be_visible()
    entries: list[dict[str, Any]] = []
    limit = time.monotonic() + PAGE_SECONDS
    while not entries and time.monotonic() < limit:  # what is done is seen first, and noted then
        audit = httpx.get(f"{service.url}/v1/audit", params={"job_id": job_id}, timeout=PAGE_SECONDS)
        entries = audit.json()["entries"]
    assert [(entry["action"], entry["actor"], entry["status"]) for entry in entries] == [
        ("POST /v1/jobs/{job_id}/resume", "local", 200)
    ]


def test_the_form_says_what_is_wrong_and_starts_the_job_when_it_is_mended(
    desk: Visit, service: FilledService, store: JobStore
) -> None:
    desk.open("/start")
    page = desk.page
    page.get_by_label("Rounds").fill("0")
    page.get_by_label("Learning rate").fill("fast")
    page.get_by_role("button", name="Start the job").click()
    problems = page.get_by_role("alert").filter(has_text="This job cannot start yet")
    expect(problems).to_contain_text("optimizer.learning_rate: 'fast' is not a number")
    page.get_by_label("Learning rate").fill("")
    page.get_by_role("button", name="Start the job").click()
    expect(problems).to_contain_text("schedule.rounds: 0 is too small; it must be at least 1")
    expect(page.locator(".q-field--error")).to_contain_text("0 is too small; it must be at least 1")
    page.get_by_label("Rounds").fill("3")
    page.get_by_label("Name", exact=True).fill("from-the-form")
    page.get_by_role("button", name="Check").click()
    expect(page.get_by_text("This job can start.")).to_be_visible()
    desk.save("start")
    page.get_by_role("button", name="Start the job").click()
    page.wait_for_url(re.compile(r"/jobs/from-the-form-\w{6}$"))
    made = store.get(page.url.rpartition("/")[2])
    assert made.spec["schedule"]["rounds"] == 3  # type: ignore[index, call-overload]
    assert made.spec["objective"]["beta"] == 0.05, "the rest is the template's"  # type: ignore[index, call-overload]


def test_a_template_fills_the_job_file_and_a_broken_file_is_named_by_its_line(desk: Visit) -> None:
    desk.open("/start")
    text = desk.page.get_by_label("Job file, as YAML")
    desk.page.get_by_label("Template").click()
    desk.page.get_by_role("option", name="continual").click()
    expect(text).to_have_value(re.compile("kind: chase"))
    expect(desk.page.get_by_text("file: continual")).to_be_visible()
    text.fill("name: [\n")
    desk.page.get_by_role("button", name="Check").click()
    expect(desk.page.get_by_role("alert").filter(has_text="line 2")).to_be_visible()
    text.fill("a: &x [1]\nb: *x\n")
    desk.page.get_by_role("button", name="Check").click()
    expect(desk.page.get_by_role("alert").filter(has_text="aliases")).to_be_visible()


def test_a_preference_goes_into_the_running_job(desk: Visit, service: FilledService, store: JobStore) -> None:
    job_id = service.ids["live"]
    before = store.preference_totals(job_id).waiting
    desk.open(f"/jobs/{job_id}/preferences?sample=0.4")
    page = desk.page
    expect(page.get_by_text("Question 4?")).to_be_visible()
    expect(page.get_by_text("At most 25% of each version")).to_be_visible()
    first = page.locator(".answer .said").first.inner_text()
    page.get_by_role("button", name="The first is better").click()
    expect(page.get_by_role("status")).to_contain_text("Stored: you preferred the answer of fast v0")
    expect(page.get_by_text("Question 5?")).to_be_visible()
    page.get_by_role("button", name="Neither").click()
    expect(page.get_by_text("Question 6?")).to_be_visible()
    assert store.preference_totals(job_id).waiting == before + 1
    kept = store.waiting_preferences(job_id, limit=1, after=before)[0].preference
    assert kept.chosen == first and kept.rater == "local"
    expect(page.get_by_text(f"{before + 1} waiting")).to_be_visible()


def test_a_job_that_takes_no_preferences_says_so(desk: Visit, service: FilledService) -> None:
    desk.open(f"/jobs/{service.ids['paused']}/preferences")
    expect(desk.page.get_by_text("feedback.share is 0")).to_be_visible()
    expect(desk.page.get_by_role("button", name="better")).to_have_count(0)


def test_an_unknown_job_is_said_to_be_one(desk: Visit) -> None:
    for address in ("/jobs/none-aaaaaa", "/jobs/none-aaaaaa/preferences"):
        desk.open(address)
        expect(desk.page.get_by_text("there is no job 'none-aaaaaa'")).to_be_visible()


def test_the_api_keeps_its_own_refusals_and_policy_beside_the_pages(service: FilledService) -> None:
    missing = httpx.get(f"{service.url}/v1/nothing", timeout=PAGE_SECONDS)
    assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")
    assert "script-src" not in missing.headers["content-security-policy"]
    assert httpx.put(f"{service.url}/v1/jobs", timeout=PAGE_SECONDS).status_code == 405
    page = httpx.get(service.url, timeout=PAGE_SECONDS)
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy and "frame-ancestors 'none'" in policy


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_follow_the_system_and_the_switch_wins_over_it(
    browser: Browser, service: FilledService, scheme: str
) -> None:
    with visit(browser, service.url, color_scheme=scheme, viewport={"width": 1280, "height": 900}) as visitor:
        visitor.open(f"/jobs/{service.ids['live']}")
        page = visitor.page
        page.locator(f"body.body--{scheme}").wait_for()
        light = {"light": 255 * 3, "dark": 0x12 + 0x16 + 0x1D}
        assert brightness(visitor) == light[scheme]
        if scheme == "dark":
            page.get_by_role("figure", name="Queue depth").locator("svg path").first.wait_for(state="attached")
            visitor.save("job-dark")
        other = "dark" if scheme == "light" else "light"
        page.get_by_label("Theme").click()
        page.get_by_role("option", name=other).click()
        page.locator(f"body.body--{other}").wait_for()
        page.wait_for_function("theme => document.cookie.includes('sparring_theme=' + theme)", arg=other)
        page.reload()
        page.locator(f"body.body--{other}").wait_for()
        assert brightness(visitor) == light[other]


def brightness(visitor: Visit) -> int:
    """Red, green and blue of the page's background, together."""
    colour = visitor.page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(int(part) for part in re.findall(r"\d+", colour)[:3])


def test_no_page_is_wider_than_a_phone(browser: Browser, service: FilledService) -> None:
    job = f"/jobs/{service.ids['live']}"
    with visit(browser, service.url, **PHONE) as phone:
        for address in ("/", "/start", f"{job}/preferences"):
            phone.open(address)
            phone.page.wait_for_timeout(300)
            phone.fits()
        phone.open(job)
        phone.page.get_by_role("figure", name="Queue depth").locator("svg path").first.wait_for(state="attached")
        phone.fits()
        phone.save("phone")
        for name in TABS:
            panel = tab(phone, name)
            expect(panel).not_to_be_empty()
            phone.page.wait_for_timeout(200)
            phone.fits()
        phone.open(f"/jobs/{service.ids['domains']}?tab=domains")
        phone.page.get_by_role("table").first.wait_for()
        phone.fits()


def test_a_job_is_reached_and_a_tab_is_opened_with_the_keyboard_alone(desk: Visit, service: FilledService) -> None:
    desk.open("/")
    page = desk.page
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    link = page.get_by_role("link", name=service.ids["live"])
    for _ in range(30):
        page.keyboard.press("Tab")
        if link.evaluate("element => element === document.activeElement"):
            break
    expect(link).to_be_focused()
    assert link.evaluate("element => getComputedStyle(element).outlineStyle") == "solid", "the focus shows"
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(f"/jobs/{service.ids['live']}$"))
    curves = page.get_by_role("tab", name="Curves")
    curves.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.get_by_role("tab", name="Samples")).to_have_attribute("aria-selected", "true")
    choice = page.get_by_role("button", name=re.compile(r"Question 2\?"))
    choice.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Round 0, #2")).to_be_visible()


def test_every_control_has_a_name(desk: Visit, service: FilledService) -> None:
    for address in (
        "/",
        "/start",
        f"/jobs/{service.ids['live']}?tab=samples",
        f"/jobs/{service.ids['live']}/preferences",
    ):
        desk.open(address)
        desk.page.wait_for_timeout(300)
        nameless = desk.page.evaluate(
            """() => [...document.querySelectorAll('a, button, input:not([type=hidden]), textarea, select, [role=tab]')]
                .filter(element => element.offsetParent !== null)
                .filter(element => !(element.innerText || element.getAttribute('aria-label') || element.labels?.length
                    || element.closest('label')?.innerText))
                .map(element => element.outerHTML.slice(0, 200))"""
        )
        assert nameless == [], address


def test_with_keys_a_page_asks_for_one_first_and_its_websocket_does_too(
    browser: Browser, locked: FilledService
) -> None:
    with visit(browser, locked.url) as visitor:
        page = visitor.page
        visitor.open(f"/jobs/{locked.ids['live']}")
        assert "/login" in page.url
        page.get_by_label("API key").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("That did not work")
        visitor.complaints.clear()  # the browser says that the answer was 401
        page.get_by_label("API key").fill(KEY)
        page.keyboard.press("Enter")
        expect(page.get_by_role("figure", name="Loss").locator("svg path").first).to_be_attached()
        cookie = next(each for each in page.context.cookies() if each["name"] == "sparring_key")
        assert cookie["httpOnly"] and cookie["sameSite"] == "Strict"
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_url(re.compile("/login"))
    handshake = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    address = f"{locked.url}/_nicegui_ws/socket.io/?EIO=4&transport=websocket"
    assert httpx.get(address, headers=handshake, timeout=PAGE_SECONDS).status_code == 403
    assert httpx.get(address.replace("websocket", "polling"), timeout=PAGE_SECONDS).status_code == 401


def test_a_key_that_may_only_read_has_no_buttons_and_a_revoked_one_is_asked_for_again(
    browser: Browser, locked: FilledService
) -> None:
    access = AccessStore(f"sqlite:///{locked.home / 'sparring.sqlite'}")
    record, new = access.create_key("reader", Scope.READ)
    job = f"/jobs/{locked.ids['live']}"
    with visit(browser, locked.url) as visitor:
        page = visitor.page
        visitor.open("/start")
        page.get_by_label("API key").fill(new.text)
        page.keyboard.press("Enter")
        expect(page.get_by_text("Your key has the scope read; starting a job needs write.")).to_be_visible()
        visitor.open(f"{job}/preferences")
        expect(page.get_by_text("Your key has the scope read")).to_be_visible()
        visitor.open(job)
        expect(page.get_by_role("figure", name="Loss").locator("svg path").first).to_be_attached()
        expect(page.get_by_role("link", name="Download the adapter")).to_be_visible()
        for name in ("Pause", "Resume", "Cancel"):
            expect(page.get_by_role("button", name=name)).to_have_count(0)
        access.revoke_key(record.id)
        page.wait_for_url(re.compile("/login"))
        page.get_by_label("API key").wait_for()
    access.close()


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Host": "evil.example"}])
def test_without_keys_a_page_from_elsewhere_opens_no_websocket(service: FilledService, headers: dict[str, str]) -> None:
    handshake = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    address = f"{service.url}/_nicegui_ws/socket.io/?EIO=4&transport=websocket"
    assert httpx.get(address, headers={**handshake, **headers}, timeout=PAGE_SECONDS).status_code == 403
