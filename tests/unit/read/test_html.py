"""Text out of HTML pages: structure stays, scripts and menus go."""

from __future__ import annotations

import contextlib
import time

import pytest

from kvloom.errors import ContentError
from kvloom.read.document import DocumentKind, ReadLimits
from kvloom.read.html import read_html

LIMITS = ReadLimits()


def text_of(html: str) -> str:
    return read_html(html.encode(), "a.html", LIMITS).text


def test_headings_paragraphs_and_lists_are_written_as_markdown_does() -> None:
    html = "<h1>Bees</h1><p>They <b>fly</b>\n  far.</p><h2>Food</h2><ul><li>nectar</li><li><p>pollen</p></li></ul>"
    assert text_of(html) == "# Bees\n\nThey fly far.\n\n## Food\n\n- nectar\n\n- pollen\n"


def test_words_are_joined_and_parted_as_a_browser_does() -> None:
    assert text_of("<p>a<b>b</b>c <i>d</i> e<br>f</p><div>g</div>") == "abc d e\nf\n\ng\n"


def test_code_keeps_its_lines_between_fences() -> None:
    assert text_of("<p>see</p><pre>def f():\n    # no heading\n    pass\n</pre><p>end</p>") == (
        "see\n\n```\ndef f():\n    # no heading\n    pass\n\n```\n\nend\n"
    )


def test_cells_stand_beside_each_other() -> None:
    html = "<table><tr><th>Name</th><th>Age</th></tr><tr><td>Ada</td><td>36</td></tr></table>"
    assert text_of(html) == "Name | Age\nAda | 36\n"


def test_scripts_styles_menus_and_comments_are_no_text() -> None:
    html = "<head><style>p{}</style></head><body><nav>Home</nav><script>x()</script><!-- no --><p>yes</p></body>"
    assert text_of(html) == "yes\n"


def test_a_page_that_stands_in_one_form_is_read_without_its_fields() -> None:
    html = (
        "<body><form action=x><input value=no><h1>Bell</h1><p>It weighs <b>four</b> stone.</p>"
        "<select><option>no</option></select><button>no</button><textarea>no</textarea></form><p>after</p></body>"
    )
    assert text_of(html) == "# Bell\n\nIt weighs four stone.\n\nafter\n"
    assert text_of("<p>a</p><form>b</form>c") == "a\n\nb\n\nc\n"


def test_the_title_is_the_heading_where_the_page_opens_with_none() -> None:
    assert text_of("<title>My\n page</title><p>words</p>") == "# My page\n\nwords\n"
    assert text_of("<title>My page</title><h1>Shown</h1><p>words</p>") == "# Shown\n\nwords\n"


def test_a_headings_link_to_itself_is_no_text() -> None:
    html = (
        '<h1>Bells<a class="headerlink" href="#bells" title="Link">¶</a></h1>'
        '<p>See <a class="reference">the ¶ sign</a>.</p><dl><dt>ring()<a class="big headerlink">#</a></dt></dl>'
    )
    assert text_of(html) == "# Bells\n\nSee the ¶ sign.\n\nring()\n"


def test_an_empty_heading_leaves_no_mark() -> None:
    assert text_of("<p>a</p><h2> </h2><p>b</p>") == "a\n\nb\n"


def test_the_encoding_is_what_the_page_says() -> None:
    data = '<meta charset="iso-8859-2"><p>Łódź</p>'.encode("iso-8859-2")
    extract = read_html(data, "a.html", LIMITS)
    assert extract.text == "Łódź\n"
    assert extract.kind is DocumentKind.HTML
    assert extract.note == "read as iso-8859-2"


def test_a_page_without_text_is_refused_with_words() -> None:
    with pytest.raises(ContentError, match="holds no text"):
        text_of("<html><script>render()</script></html>")


def test_a_page_of_more_text_than_the_limit_is_refused() -> None:
    with pytest.raises(ContentError, match="the limit is 10"):
        read_html(b"<p>0123456789ABC</p>", "a.html", ReadLimits(max_text_chars=10))


def test_a_page_of_more_tags_than_the_limit_is_refused_before_its_tree_is_built() -> None:
    with pytest.raises(ContentError, match=r"some 2,000,000 tags, the limit is 500,000"):
        read_html(b"<b>x</b>" * 1_000_000, "a.html", LIMITS)


def test_deep_nesting_is_read_to_its_bottom() -> None:
    assert text_of("<div>" * 20_000 + "bottom") == "bottom\n"


@pytest.mark.parametrize(
    "part",
    ["<a ", "<", "<div>", "<p>The bell. ", "<!--", "<!", "<![CDATA[", "<?", '<a href="x ', "&", "</", "</p>", "<b><p>"],
)
def test_malformed_pages_take_time_by_their_size_only(part: str) -> None:
    """Each of them took, or takes, a parser that begins anew at every mark minutes."""

    def seconds(num_bytes: int) -> float:
        html = (part * (num_bytes // len(part))).encode()
        began_s = time.process_time()
        with contextlib.suppress(ContentError):
            read_html(html, "a.html", LIMITS)
        return time.process_time() - began_s

    # Eight times the page in a square is 64 times the time. Other work slows one run down, not each of three.
    small_s = min(seconds(20_000) for _ in range(3))
    assert any(seconds(160_000) < 0.2 + 24 * small_s for _ in range(3))


def test_an_attribute_of_megabytes_is_passed_over() -> None:
    assert text_of(f'<a href="{"x" * 3_000_000}">shown</a>') == "shown\n"


def test_wide_encodings_are_told_by_their_marks_whatever_the_page_says() -> None:
    html = '<meta charset="iso-8859-1"><p>Łódź \U0001f514</p>'
    assert read_html(html.encode("utf-16"), "a.html", LIMITS).text == "Łódź \U0001f514\n"
    assert read_html(html.encode("utf-32"), "a.html", LIMITS).text == "Łódź \U0001f514\n"


@pytest.mark.parametrize(
    "html", ["<", "<p", "</div></p>x", "<!DOCTYPE", "<![CDATA[x]]>y", "&#xD800;z", "<a<b>c", "\x00d"]
)
def test_broken_markup_never_raises_anything_but_words(html: str) -> None:
    with contextlib.suppress(ContentError):
        text_of(html).encode()
