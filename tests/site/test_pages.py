"""Every page of the site loads from this machine alone, leads nowhere wrong, fits a phone and is not too large."""

from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup

PHONE = {"width": 390, "height": 844}
BOUND = 3_000_000  # bytes of one page with its pictures, without the files that all pages share
TYPESET = "() => window.MathJax?.startup?.promise ?? true"
WIDEST = """async () => {
  await new Promise((ready) => requestAnimationFrame(() => requestAnimationFrame(ready)));
  const extra = document.documentElement.scrollWidth - innerWidth;
  const scrolls = (box) => ["auto", "scroll", "hidden"].includes(getComputedStyle(box).overflowX);
  const clipped = (box) => box && box.matches(".bd-article *") && (scrolls(box) || clipped(box.parentElement));
  const wide = [...document.querySelectorAll(".bd-article *")].filter((box) =>
    box.getBoundingClientRect().right > innerWidth + 1 && !clipped(box.parentElement));
  return { extra, by: extra > 0 ? wide.slice(0, 3).map((box) => box.outerHTML.slice(0, 100)) : [] };
}"""


@pytest.fixture(scope="module")
def trees(site, pages):
    """The parsed page of each address."""
    return {name: BeautifulSoup((site / name).read_bytes(), "html.parser") for name in pages}


def test_the_site_has_its_pages(pages, chapters):
    expected = ["index.html", "search.html", "book/intro.html", "book/bibliography.html", "book/api/index.html"]
    expected += ["book/_generated/equations.html", "book/_generated/mistakes.html", "book/evidence.html"]
    assert set(expected) <= set(pages)
    assert chapters, "no chapter is built"
    assert {f"book/_generated/evidence/{name.split('/')[1]}" for name in chapters} <= set(pages)


def test_every_chapter_is_built_and_leads_off_from_the_first_page(trees, chapters, request):
    sources = sorted((request.config.rootpath / "notebooks").glob("[0-9]*.md"))
    assert [f"notebooks/{source.stem}.html" for source in sources] == chapters
    intro = trees["book/intro.html"].select_one("article")
    for place in (".course-map a", ".sd-card a"):
        linked = {urlsplit(link["href"]).path.removeprefix("../") for link in intro.select(place)}
        assert set(chapters) <= linked, place


def test_every_page_loads_without_another_host_or_an_error_and_fits_a_phone(page, site_url, pages):
    complaints = {}
    for name in [name for name in pages if name != "index.html"]:  # it only leads on
        page.set_viewport_size({"width": 1280, "height": 900})
        page.goto(f"{site_url}{name}")
        page.evaluate(TYPESET)
        page.set_viewport_size(PHONE)
        wide = page.evaluate(WIDEST)
        if page.blocked or page.errors or wide["extra"] > 0:
            complaints[name] = {"other hosts": [*page.blocked], "errors": [*page.errors], "too wide": wide}
        page.blocked.clear()
        page.errors.clear()
    assert not complaints, "\n".join(f"{name}: {complaint}" for name, complaint in complaints.items())


def test_no_page_names_a_file_of_another_host(trees):
    """Where a request would go that this browser happened not to make: scripts, styles, pictures, fonts."""
    found = {
        (name, tag.name, tag.get("src") or tag.get("href"))
        for name, tree in trees.items()
        for tag in tree.select(
            "script[src], img[src], iframe[src], source[src], link[rel~=stylesheet], link[rel~=preload]"
        )
        if urlsplit(tag.get("src") or tag.get("href") or "").netloc
    }
    assert found == set()


def test_no_link_is_broken(site, trees):
    """Links inside the site: the page exists, and so does the place on it."""
    broken = set()
    anchors = {name: {tag["id"] for tag in tree.select("[id]")} for name, tree in trees.items()}
    for name, tree in trees.items():
        for tag in tree.select("a[href]"):
            link = urlsplit(tag["href"])
            if link.scheme or link.netloc:
                continue
            target = (site / name).parent / unquote(link.path) if link.path else site / name
            address = target.resolve().relative_to(site.resolve()).as_posix()
            lost = not target.is_file()
            fragment = unquote(link.fragment)
            if lost or (fragment and address in anchors and fragment not in anchors[address]):
                broken.add((name, tag["href"]))
    assert broken == set()


def test_every_page_names_itself_and_its_language(trees):
    for name, tree in trees.items():
        if name == "index.html":
            continue  # leads on to the first page
        assert tree.html.get("lang") == "en", name
        assert tree.title.get_text().strip(), name
        assert len(tree.select("h1:not(#jb-print-docs-body h1)")) == 1, name
        assert tree.select("meta[name=viewport]"), name


def test_every_picture_has_a_text(trees):
    pictures = ((name, image) for name, tree in trees.items() for image in tree.select("img"))
    silent = {(name, image["src"]) for name, image in pictures if image.get("alt") is None}
    silent |= {(name, image["src"]) for name, tree in trees.items() for image in tree.select("article img[alt='']")}
    assert silent == set()


def test_no_page_is_too_large(site, trees, record_property):
    """A page with its pictures stays small; what pages share (engine, MathJax, fonts) is fetched once, on demand."""
    sizes = {}
    for name, tree in trees.items():
        pictures = {(site / name).parent / unquote(image["src"]) for image in tree.select("img[src]:not([src^=data])")}
        sizes[name] = (site / name).stat().st_size + sum(path.stat().st_size for path in pictures)
    for name, size in sizes.items():
        record_property(name, size)
    total = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    record_property("whole site", total)
    print(
        "\n".join(f"{size / 1e3:10.1f} kB  {name}" for name, size in sorted(sizes.items(), key=lambda item: -item[1]))
    )
    print(f"{total / 1e6:10.1f} MB  whole site")
    assert {name: size for name, size in sizes.items() if size > BOUND} == {}
    assert total < 60e6
