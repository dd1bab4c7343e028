"""The style sheet of all HTML pages."""

from dalle_jax.reporting.sheets import RIGHT, WRONG

VERDICTS = f':root {{ --right: rgb{RIGHT}; --wrong: rgb{WRONG}; }}'  # the colours that sheets use
STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c1c1e; --muted: #6a6a72; --line: #dcdce0; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #17181b; --ink: #e8e8ea; --muted: #a0a0a8; --line: #3a3b40; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin-top: 2.5rem; font-size: 1.3rem; border-bottom: 1px solid var(--line); padding-bottom: .3rem; }
h3 { margin: 0 0 .4rem; font-size: 1.05rem; }
.grid { display: grid; gap: 1.5rem 2rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }
.curves { grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
table { border-collapse: collapse; width: 100%; font-size: .93rem; }
caption { text-align: left; font-weight: 600; padding-bottom: .25rem; }
th, td { padding: .22rem 0; border-top: 1px solid var(--line); text-align: left; vertical-align: top;
  overflow-wrap: anywhere; }
th { font-weight: 400; padding-right: 1rem; }
td { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 0 0 2rem; }
.grid figure { margin: 0; }
figcaption { color: var(--muted); margin-bottom: .6rem; white-space: pre-line; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; border-radius: 4px; border: 1px solid var(--line); }
svg { width: 100%; height: auto; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .9rem; }
summary { cursor: pointer; margin-bottom: 1rem; }
.note { color: var(--muted); font-size: .88rem; margin: .2rem 0 0; }
.row { display: flex; flex-wrap: wrap; gap: 1rem 1.5rem; align-items: flex-start; }
.row figure { margin: 0; }
.row h4, .word h4 { margin: 0 0 .2rem; font-size: .95rem; overflow-wrap: anywhere; }
.pixelated, .map, .lit { image-rendering: pixelated; }
.map, .lit { border-radius: 0; }
.scale { width: 8rem; height: .7rem; border-radius: 0; vertical-align: middle; image-rendering: auto; }
.token { border-radius: 2px; }
.caption .token { display: inline-block; padding: .1rem .35rem; margin: 0 .15rem .3rem 0; line-height: 1.25;
  border-radius: 3px; text-align: center; }
.caption small { display: block; color: var(--muted); font-size: .72rem; }
.prompt { margin-bottom: 1.6rem; }
.tiles { gap: .6rem .7rem; margin-top: .4rem; }
.tile { width: 6rem; }
.tile img { display: block; width: 100%; }
.tile .pair { display: flex; gap: 2px; }
.tile .pair img { width: 50%; }
.tile figcaption { margin: .15rem 0 0; font-size: .82rem; line-height: 1.3; text-align: center;
  font-variant-numeric: tabular-nums; }
.large .tile { width: 8.3rem; }
.prompt details { margin-top: .5rem; }
.small .tile { width: 4rem; }
.small .tile figcaption { font-size: .74rem; }
.wide .tile { width: 11.5rem; }
.tile .right { border: 3px solid var(--right); }
.tile .wrong { border: 3px solid var(--wrong); }
.readings { margin-top: 1rem; }
.reading { width: 22rem; max-width: 100%; }
.reading .maps { display: flex; gap: .4rem; }
.reading .maps img { width: calc((100% - .8rem) / 3); }
.reading .caption { margin: .4rem 0 0; }
"""
