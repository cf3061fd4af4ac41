"""Small PDF files, written by hand: what a page shows is what is given. Knows no reader."""

from __future__ import annotations

from collections.abc import Sequence


def slow_pdf() -> bytes:
    """One that takes twenty minutes to read: a page of 20,000 lines, shown 1,900 times over."""
    return pdf_of([["bell"] * 20_000], num_times=1_900)


def pdf_of(pages: Sequence[Sequence[str]], num_times: int = 1) -> bytes:
    """A PDF whose pages show these lines (Latin letters), in one of the fonts that every viewer has. `num_times`: how
    often the pages come over."""
    shown = [" ".join(f"({line}) Tj T*" for line in lines) for lines in pages]
    return _pdf(shown, b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>", num_times)


def tex_pdf_of(lines: Sequence[Sequence[str | int]]) -> bytes:
    """A page as TeX sets it: letters and gaps (thousandths of the font's size) without spaces, in a font that has
    another letter, of half its size, where a space should be."""
    shown = " ".join(
        f"[{' '.join(f'({part})' if isinstance(part, str) else str(-part) for part in line)}] TJ T*" for line in lines
    )
    widths = " ".join(["500"] * 95)
    font = f"<< /Type /Font /Subtype /Type1 /BaseFont /ABCDEF+Termes /FirstChar 32 /LastChar 126 /Widths [{widths}] >>"
    return _pdf([shown], font.encode())


def _pdf(shown: Sequence[str], font: bytes, num_times: int = 1) -> bytes:
    num_pages = len(shown)
    kids = " ".join(f"{3 + 2 * i} 0 R" for i in range(num_pages) for _ in range(num_times))
    number = 3 + 2 * num_pages
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {num_pages * num_times} >>".encode(),
    ]
    for i, one in enumerate(shown):
        stream = f"BT /F1 12 Tf 14 TL 72 720 Td {one} ET".encode("latin-1")
        page = f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {4 + 2 * i} 0 R "
        objects.append(f"{page}/Resources << /Font << /F1 {number} 0 R >> >> >>".encode())
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
    return _assembled([*objects, font])


def _assembled(objects: Sequence[bytes]) -> bytes:
    data = b"%PDF-1.4\n"
    places = []
    for number, body in enumerate(objects, start=1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    start = len(data)
    data += b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(objects) + 1, table)
    return data + b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
