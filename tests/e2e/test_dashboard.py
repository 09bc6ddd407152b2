"""The dashboard end to end: in a real browser a job is started from the form, watched, paused, resumed and told a preference; its adapter
is downloaded and loads with plain peft."""

from __future__ import annotations

import re
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from playwright.sync_api import Page, expect

from tests.e2e.world import Command, World, job, wait_for
from tests.services.browser import Visit, chromium, visit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROUNDS = 10
MINUTES = 60_000
"""Of Playwright's milliseconds."""


@pytest.fixture
def url(world: World, tmp_path: Path) -> Iterator[str]:
    """Where `sparring serve` answers."""
    log = tmp_path / "serve.log"
    with log.open("w") as file:
        command = Command(
            "serve", "--port", "0", output=file, SPARRING_DATA_ROOTS=str(world.root), PYTHONUNBUFFERED="1"
        )
    found = wait_for(lambda: re.search(r"answers at (http://\S+)", log.read_text()), "the service to answer")
    yield found.group(1)
    command.interrupt(signal.SIGTERM)
    assert command.wait(180).code == 0, log.read_text()
    assert command.leaves_nothing()


def test_somebody_with_a_browser_alone_manages_a_job(world: World, url: str, tmp_path: Path) -> None:
    with chromium() as browser, visit(browser, url, viewport={"width": 1280, "height": 900}) as visitor:
        page = visitor.page
        job_id = start_from_the_form(visitor, world)
        expect(page.get_by_text("running", exact=True)).to_be_visible(timeout=5 * MINUTES)
        loss = page.get_by_role("figure", name="Loss")
        expect(loss.locator("svg path").first).to_be_attached(timeout=5 * MINUTES)

        page.get_by_role("button", name="Pause").click()
        expect(page.get_by_text("paused", exact=True)).to_be_visible(timeout=MINUTES)
        a_sample_shows_how_its_answers_compare(page)
        a_preference_is_given(visitor, job_id)
        visitor.open(f"/jobs/{job_id}")
        expect(loss.locator("svg path").first).to_be_attached()
        before = loss.locator("svg").inner_html()
        page.get_by_role("button", name="Resume").click()
        expect(page.get_by_text("running", exact=True)).to_be_visible(timeout=MINUTES)
        wait_for(lambda: loss.locator("svg").inner_html() != before, "the curve to move", 240)

        expect(page.get_by_text("succeeded", exact=True)).to_be_visible(timeout=8 * MINUTES)
        rates = page.get_by_role("figure", name="Win rate against version 0")
        expect(rates.get_by_role("img").first).to_have_attribute("aria-label", re.compile("length-controlled"))
        download_loads(page, world, tmp_path)
        page.set_viewport_size({"width": 390, "height": 844})
        visitor.fits()
    counts = httpx.get(f"{url}/v1/jobs/{job_id}/preferences", timeout=60).json()
    assert (counts["received"], counts["consumed"]) == (1, 1), "the preference was learned from"


def start_from_the_form(visitor: Visit, world: World) -> str:
    """Write a job into the form, the number of rounds into its field, and start it."""
    page = visitor.page
    visitor.open("/start")
    text = yaml.safe_dump(job(world, name="browser", feedback={"share": 0.25}))
    page.get_by_label("Job file, as YAML").fill(text)
    page.get_by_label("Rounds").fill("0")
    page.get_by_role("button", name="Start the job").click()
    expect(page.get_by_role("alert").filter(has_text="schedule.rounds: 0 is too small")).to_be_visible()
    page.get_by_label("Rounds").fill(str(ROUNDS))
    page.get_by_role("button", name="Start the job").click()
    page.wait_for_url(re.compile(r"/jobs/browser-\w{6}$"), timeout=MINUTES)
    return page.url.rpartition("/")[2]


def a_sample_shows_how_its_answers_compare(page: Page) -> None:
    page.get_by_role("tab", name="Samples").click()
    page.get_by_role("button", name=re.compile("Tell me about")).nth(1).click()
    expect(page.get_by_role("heading", name="Round 0, #1", exact=True)).to_be_visible()
    rows = page.get_by_role("table", name=re.compile("Win matrix")).locator("tbody tr").all()
    shares = [[text.rstrip("%") for text in row.get_by_role("cell").all_inner_texts()] for row in rows]
    assert len(shares) == 3 and all(len(row) == 3 for row in shares)
    for i in range(3):
        for j in range(i):
            assert abs(int(shares[i][j]) + int(shares[j][i]) - 100) <= 1, "both are rounded"


def a_preference_is_given(visitor: Visit, job_id: str) -> None:
    page = visitor.page
    visitor.open(f"/jobs/{job_id}/preferences")
    expect(page.get_by_text("0 preferences so far")).to_be_visible()
    said = page.get_by_role("status")
    for _ in range(10):  # a random policy writes answers that cannot be learned from, too
        page.get_by_role("button", name="The first is better").click()
        expect(said).not_to_be_empty()
        if "Stored" in said.inner_text():
            break
        page.get_by_role("button", name="Neither").click()
        expect(said).to_be_empty()
    expect(page.get_by_text("1 preference so far: 1 waiting")).to_be_visible()


def download_loads(page: Page, world: World, folder: Path) -> None:
    """Download the best version's adapter with a click, and load it with plain peft."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    page.get_by_role("tab", name="Versions").click()
    with page.expect_download() as download:
        page.get_by_role("link", name=f"Download version {ROUNDS}, fast adapter").click()
    with zipfile.ZipFile(download.value.path()) as content:
        content.extractall(folder / "adapter")
    adapter = next((folder / "adapter").rglob("adapter_config.json")).parent
    base = AutoModelForCausalLM.from_pretrained(world.policy)
    ids = torch.tensor([[257, 10, 20, 30]])
    before = base(input_ids=ids).logits
    assert not torch.allclose(before, PeftModel.from_pretrained(base, adapter)(input_ids=ids).logits)
