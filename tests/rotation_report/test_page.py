"""The page is one file that loads nothing from outside, escapes every name, and works by keyboard in a browser."""

import base64
import io
import json
import re
import shutil
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from monai.data import Dataset
from monai.transforms import Lambdad
from PIL import Image
from small_reports import Failing, make_evaluator, make_report

from monai_gmr.rotation_report.page import MOST_CASES, TEMPLATES, choose_cases
from monai_gmr.rotation_report.page_curve import PAGE_COLOURS
from monai_gmr.rotation_report.page_pictures import CasePictures, choose_side, image_address, overlay_address
from monai_gmr.rotation_report.probe import Shown
from monai_gmr.rotation_report.statistics import WorstCase
from monai_gmr.rotation_report.sweeps import make_sweeps
from monai_gmr.rotation_report.worst_cases_picture import CLASS_COLOURS
from monai_gmr.symmetry import make_views

# smooth scrolling would move the elements that are clicked
MOTION = "--force-prefers-reduced-motion"
EVIL = "<img src=x onerror=alert(1)>'\".nii"
NETWORKS = ("equivariant", "</script><b>tilted")


class Tilted(torch.nn.Module):
    """A network that predicts foreground where the image is bright, more in lower rows; equivariant with ``slope=0``."""

    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, x):
        rows = torch.linspace(-1, 1, x.shape[2]).reshape(-1, *[1] * (x.ndim - 3))
        y = x[:, :1] - 0.5 + self.slope * rows * x[:, :1]
        return torch.cat([-y, y], 1)


def make_data(shape=(20, 16), names=("scan 1", EVIL, "scan 3")):
    random, data = np.random.default_rng(0), []
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    for number, name in enumerate(names):
        label = sum((axis * (1.3 + 0.6 * i)) ** 2 for i, axis in enumerate(axes)) < 0.6
        image = torch.as_tensor(label * 0.9 + random.normal(0, 0.15 + 0.1 * number, shape), dtype=torch.float32)[None]
        data.append({"image": image, "label": torch.as_tensor(label, dtype=torch.float32)[None], "name": name})
    return Dataset(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of two networks on three cases."""
    out, data = tmp_path_factory.mktemp("page"), make_data()
    evaluators = {name: make_evaluator(Tilted(slope), dataset=data) for name, slope in zip(NETWORKS, (0.0, 0.6))}
    make_report(evaluators, out, worst_cases=2, class_names={1: "<i>organ"}).run()
    return out / "report.html"


class Elements(HTMLParser):
    """Parser that collects the elements of a page: tag and attributes."""

    def __init__(self, text):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, *tags):
        return [attributes for tag, attributes in self.found if tag in tags]


@pytest.fixture(scope="module")
def elements(page):
    return Elements(page.read_text(encoding="utf-8"))


def test_the_page_asks_for_nothing_from_outside(elements, page):
    addresses = [
        value for _, attributes in elements.found for key, value in attributes.items() if key in ("src", "href")
    ]
    assert len(addresses) > 5
    assert all(address.startswith("data:") for address in addresses)
    assert {tag for tag, _ in elements.found}.isdisjoint(
        {"iframe", "object", "embed", "base", "form", "video", "audio"}
    )
    text = page.read_text(encoding="utf-8")
    style = re.search(r"<style>(.*?)</style>", text, flags=re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = [
        each["content"] for each in elements.all("meta") if each.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    assert page.stat().st_size < 2_000_000


def test_names_are_escaped(elements, page):
    text = page.read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert text.count("</script>") == 2
    assert "<b>tilted" not in text
    assert "<i>organ" not in text
    assert not any(attributes.get("onerror") for _, attributes in elements.found)
    assert EVIL in elements.text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, flags=re.DOTALL)[1])
    assert data["networks"] == list(NETWORKS)
    assert EVIL in [case["name"] for case in data["cases"]]


def test_structure_for_readers_that_do_not_see(elements):
    assert elements.all("html")[0]["lang"] == "en"
    assert len(elements.all("h1", "title", "main")) == 3
    assert all("alt" in image for image in elements.all("img"))
    labelled = {label.get("for") for label in elements.all("label")}
    assert {control["id"] for control in elements.all("select", "input")} <= labelled
    assert [each for each in elements.all("p") if each.get("aria-live") == "polite"]
    assert all(head["scope"] for head in elements.all("th"))
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))


def _luminance(colour):
    channels = np.array(list(bytes.fromhex(colour[1:]))) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4) @ [
        0.2126,
        0.7152,
        0.0722,
    ]


def _contrast(first, second):
    darker, lighter = sorted(map(_luminance, (first, second)))
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast():
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    variables = dict(re.findall(r"--(\w+): (#\w{6})", style))
    for ground in ("#ffffff", variables["ground"], "#eaf2fa"):
        for ink in (*(variables[name] for name in ("ink", "soft", "accent")), *PAGE_COLOURS):
            assert _contrast(ink, ground) >= 4.5, (ink, ground)


def test_pictures_are_those_of_the_views(page):
    """At each angle the image is the rotated scan, and the label lies where it is bright."""
    text = page.read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, flags=re.DOTALL)[1])
    assert [sweep["title"] for sweep in data["sweeps"]] == ["rotated", "mirrored, and the worst views"]
    assert [step["label"] for step in data["sweeps"][0]["steps"]][:3] == ["0°", "60°", "90°"]
    for step, size in zip(data["cases"][0]["sweeps"][0][:3], [(16, 20), (16, 20), (20, 16)]):
        image, label, *answers = (
            Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
            for address in (step["image"], step["label"], *(each["difference"] for each in step["networks"]))
        )
        assert image.size == label.size == size
        grey, inside = np.asarray(image.convert("L"), float), np.asarray(label) == 1
        assert grey[inside].mean() > grey[~inside].mean() + 60
        wrong = [int(np.count_nonzero(np.asarray(each))) for each in answers]
        assert wrong == [each["wrong"] for each in step["networks"]]


def test_a_page_of_the_default_sweep_is_small():
    """Noise takes the most bytes: three axes every 30 degrees, mirror images and worst views, the most cases, two networks."""
    views = make_views(["all", "angles"], 3)
    steps = sum(len(sweep.steps) for sweep in make_sweeps(views, [view.name for view in views[20:28]])) * MOST_CASES
    side, random = choose_side(steps), np.random.default_rng(0)
    image = len(image_address(random.normal(size=(1, side, side)), (-2, 2), side, (1, 1)))
    blocks = np.kron(random.integers(0, 4, (side // 16, side // 16)), np.ones((16, 16), int))
    overlay = len(overlay_address(blocks, CLASS_COLOURS, side, (1, 1)))
    assert steps > 150
    assert side >= 160
    assert steps * (image + 5 * overlay) < 9_000_000


def test_pixels_become_square_and_volumes_are_cut_across_the_axis():
    views = make_views({"group": "222"}, 3)
    label = np.zeros((4, 8, 6), int)
    label[1, 2:4] = 1
    sweeps = make_sweeps(views)
    pictures = CasePictures(sweeps, 64, spacing=(1, 1, 3))
    pictures.add("net", Shown(views[0], label[None].astype(float), label, label, None))
    sizes = [
        Image.open(io.BytesIO(base64.b64decode(steps[0]["image"].partition(",")[2]))).size for steps in pictures.steps
    ]
    assert sizes == [(18, 8), (18, 4), (8, 4)]
    overlay = pictures.steps[0][0]["label"].partition(",")[2]
    # the one of the four slices with the label
    assert np.count_nonzero(np.asarray(Image.open(io.BytesIO(base64.b64decode(overlay))))) == 2 * 18


def test_few_cases_are_chosen():
    worst = {"net": [WorstCase("net", str(i), "upright", "dice", 0.1, 0.1) for i in range(20, 30)]}
    assert choose_cases(["0", "1"], worst) == ["0", "20", "21", "22"]
    assert choose_cases(["0", "1"], {"net": []}) == []


class Classes(torch.nn.Module):
    """A classifier of three classes that tests whether the image is brighter in the upper half."""

    def forward(self, x):
        upper, lower = (part.mean((1, 2, 3)) for part in (x[:, :, :4], x[:, :, 4:]))
        return torch.stack([lower - upper, upper - lower, 0 * upper], 1)


def test_classifiers_have_probabilities_and_cases_without_label_no_difference(tmp_path):
    data = [{"image": torch.rand(1, 8, 8), **({"label": torch.tensor([2])} if k else {})} for k in range(2)]
    for number, item in enumerate(data):
        options = {"key_val_metric": None, "postprocessing": Lambdad("pred", torch.clone), "dataset": Dataset([item])}
        make_report(make_evaluator(Classes(), **options), tmp_path / str(number), views="4", worst_cases=1).run()
        text = (tmp_path / str(number) / "report.html").read_text(encoding="utf-8")
        shot = json.loads(re.search(r'id="data">(.*?)</script>', text, flags=re.DOTALL)[1])["cases"][0]["sweeps"][0][1]
        assert sum(shot["networks"][0]["probabilities"]) == pytest.approx(1, abs=1e-3)
        assert shot["label"] == (2 if number else None)
        assert "difference" not in shot["networks"][0]


def test_networks_with_different_cases_and_earlier_reports_share_a_page(tmp_path, capsys):
    """A case on which one network failed has pictures of only the other one; an earlier report has scores and no pictures."""
    data = make_data()
    make_report(make_evaluator(Tilted(0.3), dataset=data), tmp_path / "before", views="4").run()
    evaluators = {"whole": make_evaluator(Tilted(0.0), dataset=data)}
    evaluators["part"] = make_evaluator(Tilted(0.6), dataset=Failing(data.data, 0))
    compare = {"before": tmp_path / "before"}
    make_report(evaluators, tmp_path / "out", views="4", worst_cases=1, compare=compare).run()
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    content = json.loads(re.search(r'id="data">(.*?)</script>', text, flags=re.DOTALL)[1])
    assert content["networks"] == ["whole", "part", "before"]
    first = content["cases"][0]
    assert first["name"] == "scan 1"
    drawn = [["prediction" in each for each in case["sweeps"][0][1]["networks"]] for case in content["cases"]]
    assert drawn[0] == [True, False, False]
    assert [True, True, False] in drawn
    assert [each["score"] != "" for each in first["sweeps"][0][1]["networks"]] == [True, False, True]
    assert "part: scan 1</strong>: RuntimeError: no reader for this file" in text


@pytest.mark.parametrize("answer", [0.0, 1.0])
def test_empty_answers_and_labels_have_a_page(answer, tmp_path):
    empty = Dataset([{"image": torch.full((1, 8, 8), answer), "label": torch.zeros(1, 8, 8)}])
    make_report(make_evaluator(Tilted(0.0), dataset=empty), tmp_path, views="4", worst_cases=1).run()
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_without_jinja_one_sentence_is_said_and_the_rest_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    make_report(make_evaluator(Tilted(0.0), dataset=make_data()), tmp_path, views="2").run()
    assert (
        "jinja2 cannot be imported, so no page is written: pip install 'monai-gmr[bundle]'." in capsys.readouterr().out
    )
    assert (tmp_path / "rotation_table.png").is_file()
    assert not (tmp_path / "report.html").exists()


@pytest.fixture(scope="module")
def browser():
    """Starts Chromium without a window; its logs hold console messages and requests."""
    webdriver = pytest.importorskip("selenium.webdriver")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (program and driver):
        pytest.skip("there is no Chromium with its driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    # a container has neither a sandbox nor much shared memory
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,1000",
        MOTION,
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


def test_the_page_in_a_browser(browser, page):
    """Keyboard, pointer and choices change words, pictures and tables; nothing is requested and nothing fails."""
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    browser.get(page.as_uri())

    def find(selector):
        return browser.find_element(By.CSS_SELECTOR, selector)

    def text(selector):
        return find(selector).text

    def picture():
        return find("figure[data-part=image] .base").get_attribute("src")

    slider, upright = find("#step"), picture()
    assert text("#value") == "0°"
    slider.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert text("#value") == "90°"
    assert slider.get_attribute("aria-valuetext") == "rotated by 90°"
    assert text("#status").startswith("rotated by 90°, dice: equivariant 1")
    assert NETWORKS[1] in text("#status")
    assert picture() != upright
    over = find("figure[data-part=difference][data-network='1'] .over")
    assert over.get_attribute("alt") == f"difference of {NETWORKS[1]}: scan 1, rotated by 90°"
    assert float(find("#mark").get_attribute("style").partition("left: ")[2].partition("%")[0]) > 20
    ActionChains(browser).move_to_element_with_offset(slider, slider.size["width"] // 4, 0).click().perform()
    assert text("#value") not in ("0°", "90°")
    slider.send_keys(Keys.HOME)
    assert (text("#value"), picture()) == ("0°", upright)

    Select(find("#case")).select_by_visible_text(EVIL)
    assert EVIL in find("figure[data-part=label] .over").get_attribute("alt")
    assert picture() != upright
    Select(find("#sweep")).select_by_visible_text("mirrored, and the worst views")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert text("label[for=step]") == "View"
    assert text("#status").startswith("mirrored along axis 0, ")

    worst = find(".worst button")
    case, score = worst.find_elements(By.TAG_NAME, "strong")
    worst.send_keys(Keys.ENTER)
    assert Select(find("#case")).first_selected_option.text == case.text
    assert score.text in text("[data-score='0']")

    def column():
        return [
            float(cell.text) for cell in browser.find_elements(By.CSS_SELECTOR, "table tbody tr td:nth-child(5)")[:8]
        ]

    head = find("table thead th:nth-child(5) button")
    for state, in_order in (("ascending", sorted), ("descending", lambda values: sorted(values)[::-1])):
        head.send_keys(Keys.ENTER)
        assert find("table thead th:nth-child(5)").get_attribute("aria-sort") == state
        assert column() == in_order(column())
    find("#play").send_keys(Keys.ENTER)
    assert text("#play") == "Pause"
    find("#play").send_keys(Keys.ENTER)

    size = {"width": 360, "height": 700, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360

    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"}
    assert {address for address in asked if not address.startswith("data:")} == {page.as_uri()}
