"""What verdicts and caches look like in a notebook."""

from __future__ import annotations

import re
from html import escape
from typing import Any

_COLOURS = {"VERIFIED": "#1a7f37", "INVALID": "#cf222e", "UNVERIFIED": "#9a6700"}


def _badge(status: str) -> str:
    style = f"background:{_COLOURS[status]};color:#fff;padding:1px 7px;border-radius:4px;font-weight:600"
    return f'<span style="{style}">{status}</span>'


def _row(cells: list[Any], tag: str = "td", style: str = "") -> str:
    align = 'style="text-align:left"'
    inner = "".join(f"<{tag} {align if i < 2 else ''}>{escape(str(c))}</{tag}>" for i, c in enumerate(cells))
    return f'<tr style="{style}">{inner}</tr>'


def verdict(v: Any) -> str:
    """Points over all layers as one row each; what failed by itself, first and in red."""
    groups: dict[str, list[Any]] = {}
    for p in v.points:
        groups.setdefault(re.sub(r"^blocks\.\d+\.", "blocks.*.", p.name), []).append(p)
    checksums = any(p.projected > 0 for p in v.points)

    def by(points: list[Any]) -> list[int]:
        return [sum(p.projected for p in points)] if checksums else []

    body = [
        _row([p.name, p.op, 1, p.compared, *by([p]), p.failed, f"{p.worst_ratio:.3g}", f"{p.rms_ratio:.3g}", p.hint or p.why], style="color:#cf222e")
        for p in v.points
        if not p.passed
    ][:10]
    for name, points in groups.items():
        compared, failed = sum(p.compared for p in points), sum(p.failed for p in points)
        worst, rms = max(p.worst_ratio for p in points), max(p.rms_ratio for p in points)
        body.append(_row([name, points[0].op, len(points), compared, *by(points), failed, f"{worst:.3g}", f"{rms:.3g}" if rms else "", ""]))
    head = _row(["point", "op", "points", "compared", *(["by checksum"] if checksums else []), "failed", "error / bound", "rms", ""], "th")
    table = f"<table><thead>{head}</thead><tbody>{''.join(body)}</tbody></table>" if body else ""
    summary = escape(v.summary.removeprefix(v.status).removeprefix(": "))
    return f"<div><p>{_badge(v.status)} {summary}</p><details><summary>{len(v.points)} points</summary>{table}</details></div>"


def cache(c: Any) -> str:
    r = c.record
    what = f"{escape(r['model'])}, {r['batch']} × {r['pos']} tokens, {escape(r['device'])}, {r['dtype']}: {len(c)} activations"
    names = ", ".join(escape(name) for name in c)
    return f"<div><p>{_badge(c.verdict.status)} {what}</p><details><summary>names</summary>{names}</details></div>"
