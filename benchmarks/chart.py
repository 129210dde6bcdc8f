"""Draws how many times as fast as QEMU each program is, as an SVG."""

from __future__ import annotations

from html import escape

WIDTH, LABEL, BAR, GAP = 860, 190, 11, 12
COLOURS = {
    "lukshdrfs": "#1b7837",
    "lukshdrfs-python": "#a6dba0",
    "lukshdrfs-4096": "#5aae61",
    "qemu": "#c2a5cf",
    "nbdkit": "#e08214",
}
TEXT = 'font-family="sans-serif" font-size="11" fill="#222"'


def draw(title: str, jobs: list[str], values: dict[str, dict[str, float]]) -> str:
    """Return the chart; `values` has for each program and job its speed, in any unit that is QEMU's too."""
    programs = [name for name in COLOURS if name in values]
    ratios = {
        name: {job: values[name][job] / values["qemu"][job] for job in jobs if job in values[name]} for name in programs
    }
    largest = max(ratio for row in ratios.values() for ratio in row.values())
    scale = (WIDTH - LABEL - 60) / largest
    height = 60 + len(jobs) * (len(programs) * BAR + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="10" y="18" {TEXT} font-weight="bold">{escape(title)}</text>',
    ]
    x = 10.0
    for name in programs:
        parts.append(f'<rect x="{x:.0f}" y="28" width="10" height="10" fill="{COLOURS[name]}"/>')
        parts.append(f'<text x="{x + 14:.0f}" y="37" {TEXT}>{escape(name)}</text>')
        x += 40 + 7 * len(name)
    y = 52
    for job in jobs:
        middle = y + len(programs) * BAR / 2 + 4
        parts.append(f'<text x="{LABEL - 8}" y="{middle:.0f}" text-anchor="end" {TEXT}>{escape(job)}</text>')
        for name in programs:
            if job in ratios[name]:
                width = ratios[name][job] * scale
                parts.append(
                    f'<rect x="{LABEL}" y="{y}" width="{width:.1f}" height="{BAR - 1}" fill="{COLOURS[name]}"/>'
                    f'<text x="{LABEL + width + 4:.1f}" y="{y + 9}" {TEXT}>{ratios[name][job]:.1f}</text>'
                )
            y += BAR
        y += GAP
    return "\n".join([*parts, "</svg>", ""])
