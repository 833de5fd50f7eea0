"""The demo's page: figure, table and words in one HTML file that needs nothing else."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from .compare import Row, rows, sentences
from .parts import Part, Run

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
figure { margin: 0; } svg { width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
.lower { color: #1a7f37; } .higher { color: #b3261e; }
code, pre { background: #f4f4f4; padding: .1rem .3rem; border-radius: 3px; }
pre { padding: .8rem; overflow-x: auto; }
"""
HEADINGS = (
    "", "training loss", "times the base's [95 %]", "validation", "times the base's [95 %]",
    "evaluations to the base's loss", "ms / evaluation", "extrapolations", "accepted",
)  # fmt: skip
CODE = """optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
aadl_ext.accelerate(optimizer)  # the training loop stays as it is"""


def cells(row: Row) -> list[str]:
    """Of the table, on the page and in the terminal."""
    ran = row.extrapolations > 0
    return [
        row.method,
        f"{row.train:.2e}",
        "" if row.train_ratio is None else str(row.train_ratio),
        f"{row.valid:.2e}",
        "" if row.valid_ratio is None else str(row.valid_ratio),
        "" if row.train_ratio is None else f"{row.reached:.0%}" if row.reached else "never",
        f"{row.milliseconds:.2f}",
        str(row.extrapolations) if ran else "",
        str(row.accepted) if ran else "",
    ]


def page(parts: list[Part], runs: list[Run], settings: dict[str, Any], svg: str) -> str:
    """All of it."""
    shown = [part for part in parts if any(run.part == part.name for run in runs)]
    sections = "\n".join(_section(part, runs) for part in shown)
    made = escape(json.dumps(settings, indent=2))
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>aadl_ext: what acceleration gains</title><style>{STYLE}</style></head>
<body>
<h1>What acceleration gains, and where it gains nothing</h1>
<p>Equal weights and batches for all methods of a seed; the only difference is one line:</p>
<pre>{escape(CODE)}</pre>
<figure role="img" aria-label="Loss against gradient evaluations, a panel for each part">
{svg}
</figure>
{sections}
<h2>How it was measured</h2>
<p>Learning rates are the best of a grid for the base optimizer alone, on other seeds. A ratio is
the geometric mean over seeds of the loss at the end over that of the first row with the same seed,
with its 95 % interval; where the interval holds 1, no difference is to be seen. All curves are in
<code>demo.json</code> beside this page.</p>
<pre>{made}</pre>
</body></html>
"""


def _section(part: Part, runs: list[Run]) -> str:
    table = rows(part, runs)
    said = "".join(f"<li>{escape(line)}</li>" for line in sentences(part, table))
    head = "".join(f"<th>{escape(heading)}</th>" for heading in HEADINGS)
    body = "\n".join(_line(row) for row in table)
    return f"""<section id="{part.name}"><h2>{escape(part.title)}</h2>
<p>{escape(part.what)}</p>
<ul>{said}</ul>
<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody></table></div></section>"""


def _line(row: Row) -> str:
    ratios = {2: row.train_ratio, 4: row.valid_ratio}
    verdicts = {index: ratio.verdict for index, ratio in ratios.items() if ratio}
    columns = enumerate(cells(row))
    return f"<tr>{''.join(_cell(text, verdicts.get(index)) for index, text in columns)}</tr>"


def _cell(text: str, verdict: str | None) -> str:
    kind = f' class="{verdict}"' if verdict in ("lower", "higher") else ""
    return f"<td{kind}>{escape(text)}</td>"
