"""A table says the same in every format, and always which number is the paper's."""

import csv
import io
import math
from pathlib import Path

import pytest

from drfuse.errors import InputError
from drfuse.report import Number, Row, Table, to_csv, to_latex, to_markdown, write_table

MEASURED = Number(0.4501, 0.4262, 0.4983, 0.004, 0.47, 0.42, 0.512, note="+8.2 %", mark="best")
TABLE = Table(
    key="table2",
    title="Table 2: performance",
    caption="Macro PRAUC.",
    columns=["Model", "matched", "full"],
    rows=[
        Row("A & B_1", [MEASURED, Number(math.nan)]),
        Row("stays | <n>", [Number(11914, digits=0, paper=12000), "n/a"], rule_above=True),
        Row("C", [Number(0.5, mark="better"), Number(-0.25, mark="worse", digits=2)]),
    ],
    groups=[("", 1), ("tested on", 2)],
)

MARKDOWN = """\
### Table 2: performance

| Model | tested on: matched | tested on: full |
| :--- | ---: | ---: |
| A &amp; B\\_1 | **0.450** (0.426, 0.498) ± 0.004; +8.2 % [paper 0.470 (0.420, 0.512)] | – |
| stays \\| &lt;n&gt; | 11,914 [paper 12,000] | n/a |
| C | 0.500 ↑ | −0.25 ↓ |

Macro PRAUC. In parentheses: the 95 % interval. ±: the standard deviation over seeds. \
After the word “paper”: the paper's numbers; all others were measured. **Bold**: the best. \
↑ ↓: more than 5 % better or worse.
"""

LATEX_STACK = r"\\".join(
    [
        r"A \& B\_1 & \begin{tabular}[t]{@{}r@{}}\textbf{0.450} {\scriptsize $\pm$ 0.004}",
        r"{\scriptsize (0.426, 0.498)}",
        r"{\scriptsize +8.2 \%}",
        r"{\scriptsize\itshape paper 0.470}",
        r"{\scriptsize\itshape (0.420, 0.512)}\end{tabular} & -- \\",
    ]
)
LATEX_CAPTION = (
    r"\caption{performance. Macro PRAUC. In parentheses: the 95 \% interval. "
    r"$\pm$: the standard deviation over seeds. "
    r"After the word ``paper'': the paper's numbers; all others were measured. Bold: the best. "
    r"$\uparrow$ $\downarrow$: more than 5 \% better or worse.}"
)
LATEX_COUNT = (
    r"stays \textbar{} \textless{}n\textgreater{} & "
    r"\begin{tabular}[t]{@{}r@{}}11,914\\{\scriptsize\itshape paper 12,000}\end{tabular} & n/a \\"
)
LATEX = rf"""\begin{{table}}[htbp]
\centering
{LATEX_CAPTION}
\label{{tab:table2}}
\footnotesize
\setlength{{\tabcolsep}}{{4pt}}
\begin{{tabular}}{{@{{}}lrr@{{}}}}
\toprule
\multicolumn{{1}}{{c}}{{}} & \multicolumn{{2}}{{c}}{{tested on}} \\
\cmidrule(lr){{2-3}}
Model & matched & full \\
\midrule
{LATEX_STACK}
\midrule
{LATEX_COUNT}
C & 0.500 $\uparrow$ & $-$0.25 $\downarrow$ \\
\bottomrule
\end{{tabular}}
\end{{table}}
"""

CSV = (
    "row,column,value,low,high,spread,paper,paper_low,paper_high,note,mark\r\n"
    "A & B_1,tested on: matched,0.4501,0.4262,0.4983,0.004,0.47,0.42,0.512,+8.2 %,best\r\n"
    "A & B_1,tested on: full,,,,,,,,,\r\n"
    "stays | <n>,tested on: matched,11914,,,,12000,,,,\r\n"
    "stays | <n>,tested on: full,,,,,,,,n/a,\r\n"
    "C,tested on: matched,0.5,,,,,,,,better\r\n"
    "C,tested on: full,-0.25,,,,,,,,worse\r\n"
)


def of_one(header: str, cell: Number | str = "", caption: str = "") -> Table:
    return Table("t", "title", caption, ["", "value"], [Row(header, [cell])])


def test_markdown_is_exact() -> None:
    assert to_markdown(TABLE) == MARKDOWN


def test_latex_is_exact() -> None:
    assert to_latex(TABLE) == LATEX


def test_csv_is_exact() -> None:
    assert to_csv(TABLE) == CSV


def test_the_three_files_hold_the_three_forms(tmp_path: Path) -> None:
    write_table(TABLE, tmp_path)
    written = {path.name: path.read_bytes().decode() for path in tmp_path.iterdir()}
    assert written == {"table2.md": MARKDOWN, "table2.tex": LATEX, "table2.csv": CSV}


def test_markdown_shows_signs_as_they_are() -> None:
    table = of_one("a|b *c* `d` [e](f) $g$ ~h~ #i \\ j", "line\nbreak")
    row = to_markdown(table).splitlines()[4]
    assert row == r"| a\|b \*c\* \`d\` \[e\](f) \$g\$ \~h\~ \#i \\ j | line break |"


def test_latex_shows_signs_as_they_are() -> None:
    row = to_latex(of_one(r"[a] * $b$ 5 % #1 {c}", r"~ ^ \d ≥ – −")).splitlines()[-4]
    assert row == (
        r"{[}a] {*} \$b\$ 5 \% \#1 \{c\} & "
        r"\textasciitilde{} \textasciicircum{} \textbackslash{}d $\geq$ -- $-$ \\"
    )


def test_csv_reads_back() -> None:
    phenotype = 'Pleurisy; "pneumothorax", pulmonary\ncollapse'
    lines = list(csv.DictReader(io.StringIO(to_csv(of_one(phenotype, Number(1 / 3))), newline="")))
    assert [line["row"] for line in lines] == [phenotype]
    assert float(lines[0]["value"]) == pytest.approx(1 / 3, abs=1e-15)


def test_the_legend_names_only_signs_that_occur() -> None:
    assert to_markdown(of_one("a", Number(0.5), caption="All.")).endswith("\n\nAll.\n")
    assert to_markdown(of_one("a", Number(0.5))).endswith("| a | 0.500 |\n")


def test_an_undefined_measurement_keeps_the_paper_s_value() -> None:
    cell = Number(math.nan, math.nan, math.nan, math.nan, paper=0.3)
    assert "| a | – [paper 0.300] |" in to_markdown(of_one("a", cell))
    assert r"a & \begin{tabular}[t]{@{}r@{}}--\\{\scriptsize\itshape paper 0.300}" in to_latex(
        of_one("a", cell)
    )


def test_a_rounded_zero_has_no_sign() -> None:
    assert Number(-0.0001).shown.value == "0.000"


def test_long_names_wrap_and_many_rows_go_over_pages() -> None:
    name = "Complications of surgical procedures or medical care"
    table = Table("t", "title", "", ["Phenotype", "Transformer (EHR)"], [Row(name, ["x"])] * 25)
    text = to_latex(table)
    assert r"\begin{longtable}{@{}p{0.24\linewidth}r@{}}" in text
    assert (
        text.count(r"\begin{tabular}[b]{@{}r@{}}Transformer\\(EHR)\end{tabular}") == 2
    )  # first and further pages
    assert text.count(rf"\raggedright {name} & x \\") == 25
    assert r"\begin{table}" not in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": [Row("a", ["x"])]}, "row 'a' of t has 1 cells; expected 2"),
        ({"groups": [("g", 2)]}, "span 2 of 3 columns"),
        ({"key": "../t"}, "expected only letters, digits"),
    ],
)
def test_tables_that_do_not_fit_are_refused(change: dict[str, object], message: str) -> None:
    fitting: dict[str, object] = {"key": "t", "columns": ["a", "b", "c"], "rows": [], "groups": ()}
    with pytest.raises(InputError, match=message):
        Table(title="", caption="", **(fitting | change))  # type: ignore[arg-type]


def test_an_unknown_mark_is_refused() -> None:
    with pytest.raises(InputError, match="mark is 'good'"):
        Number(0.5, mark="good")  # type: ignore[arg-type]
