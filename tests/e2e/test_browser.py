"""What a person sees: a run's page in a real browser, from a real MLflow server."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np
import psutil
import pytest
from playwright.sync_api import Browser, Frame, Page, expect, sync_playwright
from servers import free_ports

from drgn_ray.training.embed import latents_of
from drgn_ray.training.run_directory import RunDirectory

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
)
# A folder of screenshots, for the documents: DRGN_RAY_SCREENSHOTS=docs/images pytest tests/e2e/test_browser.py
SCREENSHOTS = os.environ.get("DRGN_RAY_SCREENSHOTS")
PATIENCE = 300_000  # ms; a browser that draws without a GPU is slow
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def run(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A small network, trained and analysed by the command."""
    path = tmp_path_factory.mktemp("runs") / "small"
    settings = "--zdim 2 --enc-dim 32 --dec-dim 32 --lr 1e-3 -n 3 --workers 0 --log-seconds 0.5".split()
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-m", "jobs.train", str(store_path), "-o", str(path), *settings]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return RunDirectory(path)


@pytest.fixture(scope="module")
def link(run: RunDirectory) -> Iterator[str]:
    """The run's address, as ``drgn-ray ui`` prints it."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "jobs.ui", str(run.path.parent), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        found = next((match for line in server.stdout if (match := re.search(r"newest run.*: (http\S+)", line))), None)
        assert found is not None
        yield found[1]
        server.terminate()


def test_the_interface_answers_this_machine_alone_and_no_other_name(link: str) -> None:
    port = urlsplit(link).port
    listening = {
        connection.laddr.ip
        for connection in psutil.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    }
    assert listening == {"127.0.0.1"}
    address = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert urlopen(address).status == 200
    with pytest.raises(HTTPError, match="403"):
        urlopen(Request(address, headers={"Host": "rebound.example"}))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium; `apt-get install chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    page.set_default_timeout(PATIENCE)
    yield page
    page.close()


def keep_picture(page: Page, name: str) -> None:
    if SCREENSHOTS:
        page.screenshot(path=f"{SCREENSHOTS}/{name}.png")


def draw_lasso(page: Page, plot: Frame | Page) -> None:
    """Move the mouse around the left half of the scatter plot, from its corner, where no volume's number is."""
    box = plot.locator("#scatter .nsewdrag").first.bounding_box()
    assert box is not None
    corners = [(0.01, 0.01), (0.5, 0.01), (0.5, 0.99), (0.01, 0.99), (0.01, 0.02)]
    places = [(box["x"] + across * box["width"], box["y"] + down * box["height"]) for across, down in corners]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=6)
    page.mouse.up()


def test_the_printed_link_opens_the_run_with_its_note(page: Page, link: str) -> None:
    page.goto(link)
    expect(page.get_by_role("heading", name="small")).to_be_visible()
    expect(page.get_by_text("k-means clusters")).to_be_visible()
    keep_picture(page, "run")
    page.get_by_text("Show more").click()
    with page.expect_popup() as opened:
        page.get_by_role("link", name="explorer").click()
    expect(opened.value.frame_locator("iframe").locator("body[data-ready=yes]")).to_be_attached()


def test_there_are_charts_and_a_picture_of_the_volume_for_every_epoch(page: Page, link: str) -> None:
    page.goto(link.replace("?workflowType", "/model-metrics?workflowType"))
    page.set_viewport_size({"width": 1600, "height": 1200})
    for section in ("latent", "train_epoch", "val", "perf"):
        expect(page.get_by_text(re.compile(rf"^{section}\s*\(\d+\)$"))).to_be_visible()
    # A chart is drawn once it comes into view; the picture is in the last section.
    page.get_by_role("button", name="Add section").scroll_into_view_if_needed()
    slider = page.get_by_role("slider").last
    expect(slider).to_have_attribute("aria-valuemax", "3")
    slider.focus()
    shown = set()
    for epoch in ("1", "2", "3"):
        page.keyboard.press("ArrowRight")
        expect(slider).to_have_attribute("aria-valuenow", epoch)
        expect(page.locator(f"img[src*='volume_slices'][src*='step%2B{epoch}']")).to_be_visible()
        shown.add(page.locator("img[src*='volume_slices']").get_attribute("src"))
    assert len(shown) == 3
    keep_picture(page, "charts")


def test_the_explorer_chooses_particles_within_the_frame_and_they_can_be_exported(
    page: Page, link: str, run: RunDirectory, tmp_path: Path
) -> None:
    page.goto(link.replace("?workflowType", "/artifacts/analyze.3/explorer.html?workflowType"))
    frame_element = page.wait_for_selector("iframe")
    assert frame_element is not None
    frame = frame_element.content_frame()
    assert frame is not None
    frame.wait_for_selector("body[data-ready=yes]", timeout=PATIENCE, state="attached")
    draw_lasso(page, frame)
    frame.wait_for_selector("#how:not([hidden])", timeout=PATIENCE)
    keep_picture(page, "explorer_in_mlflow")
    frame.click("#copy-rows")
    assert frame.inner_text("#copied") == "rows copied"
    pasted = paste(page)
    rows = [int(line) for line in pasted.split()]
    z = latents_of(run)
    assert 0 < len(rows) < len(z.source_row)
    assert set(rows) <= set(z.source_row.tolist())

    command = frame.inner_text("#command").split()
    assert command[:2] == ["drgn-ray", "export"]
    file = tmp_path / "selected.txt"
    exported = [sys.executable, "-m", "jobs.export", *command[2:-1], str(file)]
    done = subprocess.run(exported, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # The page has coordinates of 16 bits: a particle on the lasso's very edge may be in one and not in the other.
    assert len({*np.loadtxt(file, dtype=int).tolist()} ^ {*rows}) <= 1


def paste(page: Page) -> str:
    """What is in the clipboard."""
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<textarea id=\"pasted\"></textarea>')")
    page.focus("#pasted")
    page.keyboard.press("Control+V")
    return page.input_value("#pasted")


def test_the_explorer_is_also_a_file_that_shows_volumes_and_plays_them(page: Page, run: RunDirectory) -> None:
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda request: troubles.append(request.url) if request.url.startswith("http") else None)
    page.goto(f"file://{run.path}/analyze.3/explorer.html")
    page.wait_for_selector("body[data-ready=yes]", state="attached")
    assert "0 of k-means centres" in page.inner_text("#which")
    before = page.locator("#slice0").screenshot()
    page.select_option("#group", label="PC1")
    page.wait_for_function("document.getElementById('which').textContent === '0 of PC1'")
    page.click("#play")
    page.wait_for_function("document.getElementById('step').value === '3'")
    page.click("#play")
    assert page.locator("#slice0").screenshot() != before
    page.select_option("#x", "z1")
    page.select_option("#colour", label="defocus, µm")
    assert page.evaluate("document.getElementById('scatter').data[0].x[0] === coordinate('z1')[0]")
    vertices = "document.getElementById('surface').data[0].x.length"
    many = page.evaluate(vertices)
    page.fill("#level", "200")
    page.wait_for_function(f"{vertices} < {many}")
    keep_picture(page, "explorer")
    assert not troubles
