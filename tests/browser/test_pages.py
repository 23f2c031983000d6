"""Every page in a real browser: it asks for nothing, fits a phone, and can be filtered, sorted and enlarged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.report_pages import GOOD_IMAGES, KINDS, RUN_IMAGES, write_pages


@pytest.fixture(scope="module")
def pages(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One page of every kind. The browser comes first, so that nothing is made where there is none."""
    return write_pages(tmp_path_factory.mktemp("pages"))


@pytest.fixture
def visit(browser: Any, pages: dict[str, Path]) -> Iterator[Callable[..., Any]]:
    """Open a page from its file without a network. In the end the page must have been silent and asked for nothing."""
    contexts: list[Any] = []
    said: list[str] = []
    asked: list[str] = []

    def opened(kind: str, width: int = 1280, colours: str = "light") -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=colours, offline=True
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(pages[kind].as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []
    assert {one for one in asked if not one.startswith("data:")} <= {page.as_uri() for page in pages.values()}


def shown(page: Any, column: int = 2) -> list[str]:
    """Return the texts of one column of the table of images, as they are shown now."""
    return [one.strip() for one in page.locator(f".images tbody tr td:nth-child({column})").all_inner_texts()]


def sort_by(page: Any, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_fits_every_window_and_no_name_is_markup(visit: Callable[..., Any], kind: str) -> None:
    page = visit(kind)
    title = page.title()
    assert title
    assert title != "x"
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("main script:not([type='application/json'])").count() == 0
    assert page.locator("h1").count() == 1
    assert page.evaluate("[...document.images].every((one) => one.alt)")
    assert page.evaluate("[...document.querySelectorAll('table')].every((one) => one.caption.textContent)")
    assert page.evaluate("[...document.querySelectorAll('main svg[role]')].every((one) => one.ariaLabel)")
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    # On a telephone a row of many columns is a card, of which nothing lies outside.
    hidden = "[...document.querySelectorAll('.cards')].filter((one) => one.scrollWidth > one.clientWidth)"
    assert page.evaluate(f"{hidden}.map((one) => one.ariaLabel)") == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_colours_follow_the_system_and_the_button(visit: Callable[..., Any], kind: str) -> None:
    page = visit(kind, colours="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.locator("#theme").click()
    light = page.evaluate(background)
    assert light == "rgb(255, 255, 255)" != dark
    page.locator("#theme").click()
    assert page.evaluate(background) == dark
    page.emulate_media(media="print")
    assert page.evaluate(background) == light
    assert not page.locator("#theme").is_visible()


def test_images_are_filtered_sorted_and_shown_in_slices(visit: Callable[..., Any]) -> None:
    page = visit("run")
    assert f"the run ended after {RUN_IMAGES} of {RUN_IMAGES + 1} images" in page.inner_text("main")
    assert len(shown(page)) == 50
    sort_by(page, "number")
    names = shown(page)
    page.get_by_role("button", name="Next 50").click()
    names += shown(page)
    page.get_by_role("button", name="Next 50").click()
    names += shown(page)
    assert page.get_by_role("button", name="Next 50").is_disabled()
    assert [name[:3] for name in names] == [f"{number:03}" for number in range(RUN_IMAGES)]
    assert "<script>" in names[0]
    assert "\\u202e" in names[0]

    page.get_by_label("Verdict", exact=True).select_option("not_inspected")
    unseen = RUN_IMAGES // 13
    assert page.locator(".count").inner_text() == f"{unseen} of {RUN_IMAGES} images"
    assert all("it holds <script>" in reason for reason in page.locator("td.wide").all_inner_texts())
    page.get_by_label("Verdict", exact=True).select_option("")
    page.get_by_label("Search").fill("013 SCRIPT")
    assert [name[:3] for name in shown(page)] == ["013"]
    page.get_by_label("Search").fill("nothing at all")
    assert shown(page) == []
    assert "No image matches" in page.inner_text(".pager")


def test_the_worst_images_come_first_and_numbers_are_sorted_as_numbers(visit: Callable[..., Any]) -> None:
    page = visit("evaluation")
    verdicts = shown(page, 4)
    assert len(verdicts) == GOOD_IMAGES + 1 + 12
    wrong = [one in ("missed", "false alarm") for one in verdicts]
    assert any(wrong)
    assert wrong == sorted(wrong, reverse=True)
    assert verdicts.count("not inspected") == 1
    for _ in range(2):
        sort_by(page, "score")
        scores = [float(one) for one in shown(page, 5) if one]
        down = page.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
        assert scores == sorted(scores, reverse=down)
        assert shown(page, 5)[-1] == ""  # a row without a score stays at the end in both directions
    page.get_by_label("Class", exact=True).select_option("scratch <b>")
    assert set(shown(page, 3)) == {"scratch <b>"}


def test_pictures_are_enlarged_with_mouse_and_keyboard(visit: Callable[..., Any]) -> None:
    page = visit("evaluation")
    page.get_by_label("Class", exact=True).select_option("scratch <b>")
    first = page.locator("button.zoom").first
    first.click()
    dialog = page.locator("dialog")
    assert dialog.is_visible()
    names = dialog.locator("figcaption").all_inner_texts()
    assert names[0] == "image"
    assert names[-1] == "ground truth"
    assert "anomaly map" in names
    assert dialog.locator("img").evaluate_all("(all) => all.every((one) => one.naturalWidth > 0)")
    caption = dialog.locator("p").inner_text()
    page.keyboard.press("ArrowRight")
    assert dialog.locator("p").inner_text() != caption
    page.keyboard.press("ArrowLeft")
    assert dialog.locator("p").inner_text() == caption
    assert dialog.get_by_role("button", name="Previous").is_disabled()
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert first.evaluate("(one) => one === document.activeElement")
    page.keyboard.press("Enter")
    assert dialog.is_visible()
    page.get_by_role("button", name="Close").click()
    assert not dialog.is_visible()


@pytest.mark.parametrize("kind", ["gate", "demo"])
def test_figures_of_a_gallery_are_enlarged(visit: Callable[..., Any], kind: str) -> None:
    page = visit(kind, width=390)
    page.locator(".gallery button.zoom").nth(1).press("Enter")
    assert page.locator("dialog img").count() == 4
    assert page.locator("dialog p").inner_text().startswith({"gate": "1 ", "demo": "scratch/1"}[kind])
    assert page.evaluate("document.querySelector('dialog').scrollWidth") <= 390


@pytest.mark.parametrize(
    ("kind", "head"), [("bench", "p50 ms"), ("gate", "sensitivity"), ("evaluation", "called ok")]
)
def test_a_table_is_sorted_by_a_click_on_its_head(visit: Callable[..., Any], kind: str, head: str) -> None:
    page = visit(kind)
    table = page.locator("table.sortable").filter(has=page.get_by_role("button", name=head, exact=True)).first
    button = table.get_by_role("button", name=head, exact=True)
    column = button.evaluate("(one) => one.closest('th').cellIndex")
    for is_down in (False, True):
        button.press("Enter")
        cells = [row.split("\t")[column] for row in table.locator("tbody tr").all_inner_texts()]
        numbers = [float(one) for one in cells if one != "-"]
        assert len(set(numbers)) > 1
        assert numbers == sorted(numbers, reverse=is_down)
        assert all(one != "-" for one in cells[: len(numbers)])


def test_a_page_leads_to_the_page_beside_it(visit: Callable[..., Any]) -> None:
    page = visit("demo")
    page.get_by_role("link", name="Evaluation of every test image").click()
    assert page.title() == "Evaluation"
