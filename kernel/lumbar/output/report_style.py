"""The style of the report's pages."""

from lumbar.chains.contract import LEVEL_COLOURS

_COLOURS = "\n".join(
    f".at-{level} {{ --level: rgb({red}, {green}, {blue}); }}" for level, (red, green, blue) in LEVEL_COLOURS.items()
)

_BASE = """
:root { --ink: #1c2430; --soft: #566373; --line: #dfe5ec; --back: #f5f7fa; --card: #fff;
        --mild: #8fb8a4; --moderate: #e8b04a; --severe: #cf4b4b; --accent: #2c5f8a; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
       font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 26px 24px 48px; }
h1 { font-size: 25px; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 17px; margin: 34px 0 12px; }
h3 { font-size: 15px; margin: 0; }
a { color: var(--accent); }
.soft { color: var(--soft); }
.mono { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, monospace; font-size: 12px; }
header { display: flex; align-items: center; justify-content: space-between; gap: 16px; flex-wrap: wrap; }
.badge { background: #fff3d6; color: #7a5600; border: 1px solid #ecd9a4; border-radius: 999px; padding: 5px 14px;
         font-weight: 600; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(112px, 1fr)); gap: 12px; margin: 20px 0 12px; }
.card, .study, .panel { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.card { padding: 12px 14px; color: inherit; text-decoration: none; }
.card b { display: block; font-size: 22px; font-weight: 650; font-variant-numeric: tabular-nums; }
a.card { border-color: #b9cbdd; } a.card span { color: var(--accent); text-decoration: underline; }
.panel { padding: 14px 16px; }
.two { display: grid; grid-template-columns: 3fr 2fr; gap: 12px; align-items: start; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 14px; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.bar { display: grid; grid-template-columns: 90px 1fr 152px; gap: 10px; align-items: center; margin: 5px 0; }
.bar i { display: block; height: 11px; min-width: 2px; background: var(--accent); border-radius: 3px; }
.bar span:last-child { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.study { margin: 0 0 22px; scroll-margin-top: 8px; }
.study > div { padding: 12px 16px; }
.study .head { display: flex; gap: 4px 12px; align-items: baseline; border-bottom: 1px solid var(--line);
               padding: 11px 16px; flex-wrap: wrap; }
.pill { border-radius: 999px; padding: 2px 10px; font-size: 12px; font-weight: 600; background: #e0efe7;
        color: #22603f; white-space: nowrap; }
.pill.some { background: #fdf0d5; color: #7a5600; }
.notes { padding: 10px 16px 0 !important; }
.notes p { margin: 0 0 6px; padding: 5px 10px; border-left: 4px solid var(--moderate); background: #fdf7e9;
           border-radius: 0 5px 5px 0; font-size: 13px; }
.notes p.alarm { border-color: var(--severe); background: #fcecea; font-weight: 600; }
.pill.prior { background: #fbe3e1; color: #8d2a24; }

/* pictures: the frame is the label of a check box; checked, it fills the window */
.store { position: absolute; width: 0; height: 0; overflow: hidden; }
.row { display: grid; gap: 14px 12px; align-items: start; }
.sagittals { grid-template-columns: repeat(3, minmax(0, 1fr)); }
.axials { grid-template-columns: repeat(5, minmax(0, 1fr)); }
figure { margin: 0; min-width: 0; }
figure input { position: absolute; opacity: 0; width: 1px; height: 1px; }
.frame { display: block; cursor: zoom-in; }
.shot { position: relative; display: block; container-type: inline-size; background: #000; border-radius: 6px;
        overflow: hidden; aspect-ratio: var(--ratio); }
.shot svg { position: absolute; inset: 0; width: 100%; height: 100%; display: block; }
.shot b { position: absolute; font: 600 13px/1 system-ui, "DejaVu Sans", sans-serif; color: var(--level, #fff);
          transform: translate(12px, -50%); text-shadow: 0 0 3px #000, 0 0 3px #000; white-space: nowrap;
          background: rgb(0 0 0 / .62); border-radius: 3px; padding: 1px 3px 2px; } /* reads on fat as on air */
.shot b.true-level { --level: #fff; font-size: 11px; font-weight: 600; }
.shot b.to-left { transform: translate(calc(-100% - 12px), -50%); }
.shot b small { font-size: 11px; font-weight: 600; }
.shot em { position: absolute; top: 50%; font: 600 12px/1 system-ui, sans-serif; color: #cfd8e3; left: 6px;
           text-shadow: 0 0 3px #000, 0 0 3px #000; font-style: normal; }
.shot em.end { left: auto; right: 6px; }
.axials .shot em { top: auto; bottom: 6px; } /* at the corners, away from the points' own letters */
@container (max-width: 300px) {
  .shot b { font-size: 12px; } .shot b small { display: block; margin-top: 1px; } /* below, so that it is not cut */
}
.shot strong { position: absolute; left: 8px; top: 8px; font: 650 14px/1 system-ui, sans-serif; color: var(--level);
               background: rgb(0 0 0 / .62); border-radius: 3px; padding: 1px 3px 2px; }
figcaption { font-size: 12px; color: var(--soft); margin-top: 5px; line-height: 1.35; }
.frame .close { display: none; }
figure input:focus-visible + .frame .shot { outline: 3px solid var(--accent); outline-offset: 2px; }
figure input:checked + .frame { position: fixed; inset: 0; z-index: 10; background: rgb(6, 9, 14);
  display: flex; flex-direction: column; align-items: center; justify-content: center; gap: 8px; cursor: zoom-out; }
figure input:checked + .frame .shot { width: min(96vw, calc(90vh * var(--ratio))); border-radius: 0; }
figure input:checked + .frame .shot b { font-size: 18px; }
figure input:checked + .frame .close { display: block; color: #cfd8e3; font-size: 13px; }
.extra .frame { display: none; }
.extra { height: 0; }
.cross { stroke: var(--level); stroke-width: 2px; vector-effect: non-scaling-stroke; fill: none; }
.halo { stroke: #000; stroke-width: 4.5px; stroke-opacity: .75; vector-effect: non-scaling-stroke; fill: none; }
.other-slice { stroke-dasharray: 3 2.5; }
.truth { stroke: #fff; stroke-width: 1.6px; vector-effect: non-scaling-stroke; fill: none; }

table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 12px; }
th, td { padding: 5px 8px; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td, tbody tr:last-child th { border-bottom: 0; }
.grid, .levels { table-layout: fixed; margin-top: 4px; } .grid th:first-child { width: 262px; }
.levels th:first-child { width: 62px; } .levels td:first-child { font-weight: 650; font-size: 15px; }
.levels th:last-child { width: 31%; }
.levels tbody th { color: var(--ink); font-size: 15px; vertical-align: top; }
.grade { display: flex; gap: 10px; align-items: flex-start; }
.detail { flex: 0 0 116px; cursor: zoom-in; background: #000; border-radius: 5px; overflow: hidden; display: block; }
.detail svg { display: block; width: 116px; height: 116px; }
.none { flex: 0 0 116px; height: 116px; border: 1px dashed #b8c2cd; border-radius: 5px; color: var(--soft);
        font-size: 11.5px; display: grid; place-items: center; text-align: center; padding: 6px; }
.marks { flex: 1 1 0; min-width: 0; }
.marks > div + div { margin-top: 9px; }
.side { font-size: 12px; color: var(--ink); margin-bottom: 2px; }
.split { display: flex; height: 10px; border-radius: 3px; overflow: hidden; background: var(--line);
         margin-bottom: 2px; }
.split i { display: block; height: 100%; }
.m0 { background: var(--mild); } .m1 { background: var(--moderate); } .m2 { background: var(--severe); }
.num { font-size: 12px; color: var(--soft); white-space: nowrap; } .num b { color: var(--ink); }
.at-prior { opacity: .35; }
.prior-mark { display: inline-block; font-size: 11.5px; color: #7a5600; background: #fdf0d5; border-radius: 3px;
              padding: 0 5px; }
.away { color: var(--severe); font-weight: 600; white-space: normal; }
.true { display: inline-block; font-size: 11.5px; margin-top: 3px; border-left: 4px solid; padding-left: 5px; }
.t0 { border-color: var(--mild); } .t1 { border-color: var(--moderate); } .t2 { border-color: var(--severe); }
.key { display: flex; gap: 6px 18px; font-size: 12.5px; color: var(--soft); margin: 0 0 8px; flex-wrap: wrap; }
.key i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 5px; }
.key svg { width: 14px; height: 14px; vertical-align: -2px; margin-right: 4px; background: #333; border-radius: 2px; }
ul.problems { margin: 0; padding-left: 18px; } ul.problems li { overflow-wrap: anywhere; font-size: 12.5px; }
.right { text-align: right; }
footer { margin-top: 34px; color: var(--soft); font-size: 12.5px; }
nav { display: flex; gap: 6px 16px; flex-wrap: wrap; align-items: baseline; margin: 0 0 12px; }
nav .here { font-weight: 650; } nav .badge { margin-left: auto; }
@media (max-width: 1000px) {
  .two { grid-template-columns: 1fr; }
  .grade { flex-direction: column; } .marks { width: 100%; flex: none; }
  .detail, .none { flex: none; width: 116px; }
  .levels th:last-child { width: auto; } .grid th:first-child { width: 180px; }
  .axials { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  main { padding: 18px 14px 40px; }
}
@media (max-width: 620px) {
  .sagittals { grid-template-columns: 1fr; } .axials { grid-template-columns: repeat(2, minmax(0, 1fr)); }
}
@media print { .frame, .detail { cursor: auto; } .study { break-inside: avoid-page; } }
"""

STYLE = _BASE + _COLOURS
