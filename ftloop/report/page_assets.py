"""The style sheet and the only script of the report pages."""

STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --fore: #1c2024; --soft: #60666c;
  --line: #d9dce0; --tint: #f4f5f7;
  --link: #0b62b8; --bad: #b4231f; --good: #1a7f37 }
@media (prefers-color-scheme: dark) { :root { --back: #14171a; --fore: #e3e6e8; --soft: #9aa1a8;
  --line: #32373c;
  --tint: #1d2125; --link: #74b3f2; --bad: #ff8a80; --good: #6fcf87 } }
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body { margin: 0 auto; max-width: 1100px; padding: 1rem; background: var(--back);
  color: var(--fore);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", Helvetica, Arial,
  sans-serif }
a { color: var(--link) }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .6rem 0 .2rem; overflow-wrap: anywhere }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; padding-top: .6rem;
  border-top: 1px solid var(--line) }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem }
p { margin: .5rem 0; max-width: 75ch; overflow-wrap: anywhere }
.soft, figcaption, .hint { color: var(--soft); font-size: .87rem }
.bad { color: var(--bad) } .good { color: var(--good) }
nav { margin: 1rem 0; padding: .6rem .9rem; background: var(--tint); border-radius: 6px;
  font-size: .93rem }
nav a { display: inline-block; margin: .15rem .9rem .15rem 0 }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: .6rem;
  margin: 1rem 0 }
.facts div { background: var(--tint); border-radius: 6px; padding: .5rem .7rem;
  overflow-wrap: anywhere }
.facts b { display: block; font-size: 1.1rem; line-height: 1.3 }
.facts span { color: var(--soft); font-size: .82rem }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr));
  gap: 1rem 1.6rem;
  align-items: start }
figure { margin: .8rem 0; min-width: 0 }
figure > svg { display: block; width: 100%; height: auto; max-width: 620px }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", Arial,
  sans-serif !important }
figcaption { margin-top: .3rem; max-width: 75ch }
.scroll { overflow-x: auto; margin: .6rem 0; max-width: 100% }
.tall { max-height: 34rem; overflow-y: auto } .tall th { position: sticky; top: 0;
  background: var(--back) }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums }
caption { text-align: left; color: var(--soft); padding-bottom: .3rem }
th, td { padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top }
th { color: var(--soft); font-weight: 600; vertical-align: bottom }
td.number, th.number { text-align: right } td.number { white-space: nowrap }
td.word { min-width: 6rem; max-width: 14rem; overflow-wrap: anywhere }
td.text { min-width: 15rem; overflow-wrap: anywhere; white-space: pre-line }
td small { display: block; color: var(--soft) }
th button { all: unset; cursor: pointer } th button:focus-visible { outline: 2px solid var(--link) }
th[aria-sort=ascending] button::after { content: " \\2191" }
th[aria-sort=descending] button::after { content: " \\2193" }
pre { background: var(--tint); padding: .6rem .8rem; border-radius: 6px; overflow-x: auto;
  font-size: .82rem;
  white-space: pre-wrap; overflow-wrap: anywhere }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr));
  gap: .7rem; margin: .6rem 0 }
.pictures div { font-size: .78rem; line-height: 1.3; overflow-wrap: anywhere }
.pictures img { display: block; width: 96px; height: 96px; object-fit: contain;
  background: var(--tint);
  image-rendering: auto; margin-bottom: .2rem }
li { overflow-wrap: anywhere; max-width: 75ch } li.finding { white-space: pre-line;
  margin: .3rem 0 }
@media (max-width: 480px) { body { padding: .7rem; font-size: 14px } h1 { font-size: 1.35rem } }
@media print { :root { --back: #fff; --fore: #000; --soft: #444; --line: #bbb; --tint: #f4f4f4;
  color-scheme: light }
  body { max-width: none; padding: 0; font-size: 10pt } nav, .hint, a.data { display: none }
  figure, tr, .facts div, .pictures div { break-inside: avoid } h2, h3 { break-after: avoid }
  .scroll, .tall { overflow: visible; max-height: none } .grid { grid-template-columns: 1fr 1fr } }
"""

# Sorts a table by the column whose header is clicked, as numbers where both cells are numbers.
SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const sign = header.getAttribute("aria-sort") === "descending" ? 1 : -1;
      headers.forEach(other => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
      const value = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const compare = (a, b) =>
        (a - b) || String(a).localeCompare(String(b), undefined, {numeric: true});
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort((a, b) => sign * compare(value(a), value(b))));
    });
  });
}
"""
