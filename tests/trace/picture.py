"""Spans as a timeline in SVG."""

from collections import defaultdict
from html import escape

COLORS = {
    "gateway": "#3b6fb6",
    "trainer": "#c2572f",
    "data-prep": "#3d8b5f",
    "model-registry": "#8a5aa8",
    "inference": "#b08a1e",
}
OTHER = "#777777"
ROW, LABEL, WIDTH, TAIL, HEAD = 20, 430, 900, 90, 76
# More siblings of one name than these share a row.
MOST_ALIKE = 4


def rows(spans):
    """Rows as (depth, spans): a span's children below it in the order of time; many of one name share a row."""
    known = {span.id for span in spans}
    children = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.begin):
        children[span.parent if span.parent in known else ""].append(span)

    def below(parent, depth):
        alike = defaultdict(list)
        for span in children[parent]:
            alike[span.service, span.name].append(span)
        for span in children[parent]:
            group = alike[span.service, span.name]
            shared = len(group) > MOST_ALIKE and not any(children[one.id] for one in group)
            if not shared:
                yield depth, [span]
                yield from below(span.id, depth + 1)
            elif span is group[0]:
                yield depth, group

    yield from below("", 0)


def _length(seconds):
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _step(seconds):
    for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300):
        if seconds / step <= 12:
            return step
    return 600


def draw(title, spans):
    """The picture as text."""
    lines = list(rows(spans))
    begin, end = min(span.begin for span in spans), max(span.end for span in spans)
    total = max((end - begin) / 1e9, 1e-6)
    height = HEAD + ROW * len(lines) + 16

    def at(time):
        return LABEL + (time - begin) / 1e9 / total * WIDTH

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LABEL + WIDTH + TAIL}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="12" y="24" font-size="16" fill="#222222">{escape(title)}</text>',
    ]
    x = 12
    for service in sorted({span.service for span in spans}):
        out.append(f'<rect x="{x}" y="36" width="12" height="12" fill="{COLORS.get(service, OTHER)}"/>')
        out.append(f'<text x="{x + 17}" y="46" fill="#222222">{escape(service)}</text>')
        x += 40 + 7 * len(service)
    step = _step(total)
    for index in range(int(total / step) + 1):
        x = LABEL + index * step / total * WIDTH
        out.append(f'<line x1="{x:.1f}" y1="{HEAD - 8}" x2="{x:.1f}" y2="{height - 12}" stroke="#e4e4e4"/>')
        out.append(f'<text x="{x:.1f}" y="{HEAD - 12}" fill="#666666" text-anchor="middle">{index * step:g} s</text>')
    for index, (depth, group) in enumerate(lines):
        y, span = HEAD + ROW * index, group[0]
        # Of `package.Service/Method` the package says nothing here.
        name = span.name.rsplit(".", 1)[-1] if "/" in span.name else span.name
        name += (f" ×{len(group)}" if len(group) > 1 else "")
        color = COLORS.get(span.service, OTHER)
        out.append(f'<text x="{12 + 14 * depth}" y="{y + 14}" fill="#222222">{escape(name)}</text>')
        for one in group:
            width = max((one.end - one.begin) / 1e9 / total * WIDTH, 2)
            details = escape(f"{one.service}: {one.name}, {_length(one.seconds)}")
            out.append(
                f'<rect x="{at(one.begin):.1f}" y="{y + 4}" width="{width:.1f}" height="{ROW - 8}" rx="1" fill="{color}">'
                f"<title>{details}</title></rect>"
            )
        last = max(at(one.end) for one in group)
        length = _length(sum(one.seconds for one in group))
        out.append(f'<text x="{last + 6:.1f}" y="{y + 14}" fill="#666666" font-size="10">{length}</text>')
    return "\n".join([*out, "</svg>", ""])
