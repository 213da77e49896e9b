"""The HTML of the report page, a Jinja template."""

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
:root {
  --ground: #fbfbfa; --card: #ffffff; --ink: #1f2328; --quiet: #59636e; --line: #dfe2e6; --accent: #0a62b0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14171b; --card: #1c2026; --ink: #e6e8eb; --quiet: #9aa4af; --line: #31373f; --accent: #6cb6ff;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif;
}
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: clamp(1.6rem, 5vw, 2.2rem); line-height: 1.2; letter-spacing: -.015em; margin: 0 0 1.5rem;
  text-wrap: balance; }
h2 { font-size: 1.35rem; line-height: 1.3; letter-spacing: -.01em; margin: 3rem 0 .75rem; }
p { max-width: 44rem; margin: 0 0 1rem; overflow-wrap: anywhere; }
a { color: var(--accent); }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1.25rem;
  margin: 1.5rem 0 0; padding: 0; }
dl.summary { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .75rem;
  margin: 0; }
dl.summary div { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: .7rem .9rem; }
dl.summary dt { color: var(--quiet); font-size: .84rem; line-height: 1.35; }
dl.summary dd { margin: .15rem 0 0; font-size: 1.35rem; line-height: 1.3; font-weight: 600;
  overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.table { overflow-x: auto; margin: 1.25rem 0; border: 1px solid var(--line); border-radius: .6rem;
  background: var(--card); }
table { border-collapse: collapse; width: 100%; font-size: .94rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--quiet); font-size: .88rem; padding: .65rem .9rem; }
th, td { padding: .5rem .9rem; text-align: left; border-top: 1px solid var(--line); vertical-align: top; }
thead th { color: var(--quiet); font-weight: 600; border-top: 0; vertical-align: bottom; line-height: 1.35; }
th:first-child, td:first-child { min-width: 8rem; }
caption ~ thead th { border-top: 1px solid var(--line); }
.number { text-align: right; white-space: nowrap; }
figure { margin: 1.5rem 0; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: .6rem; }
figcaption { color: var(--quiet); font-size: .88rem; max-width: 44rem; margin-top: .5rem; }
@media print {
  main { padding: 0; }
  nav { display: none; }
  figure, .table { break-inside: avoid; }
}
</style>
</head>
<body>
<main>
<header>
<h1>{{ title }}</h1>
{% if summary %}
<dl class="summary">
{% for name, value in summary %}
<div><dt>{{ name }}</dt><dd>{{ value }}</dd></div>
{% endfor %}
</dl>
{% endif %}
{% if sections | length > 2 %}
<nav aria-label="Sections"><ul>
{% for section in sections %}
<li><a href="#section-{{ loop.index }}">{{ section.heading }}</a></li>
{% endfor %}
</ul></nav>
{% endif %}
</header>
{% for section in sections %}
<section id="section-{{ loop.index }}">
<h2>{{ section.heading }}</h2>
{% for paragraph in section.paragraphs %}
<p>{{ paragraph }}</p>
{% endfor %}
{% for table in section.tables %}
<div class="table" tabindex="0"><table>
{% if table.caption %}
<caption>{{ table.caption }}</caption>
{% endif %}
<thead><tr>
{% for name in table.header %}
<th scope="col"{% if table.numeric[loop.index0] %} class="number"{% endif %}>{{ name }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in table.rows %}
<tr>
{% for cell in row %}
<td{% if table.numeric[loop.index0] %} class="number"{% endif %}>{{ cell }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table></div>
{% endfor %}
{% for picture in section.pictures %}
<figure>
<img src="{{ picture.source }}" alt="{{ picture.alt }}"
  width="{{ picture.width }}" height="{{ picture.height }}">
<figcaption>{{ picture.caption }}</figcaption>
</figure>
{% endfor %}
</section>
{% endfor %}
</main>
</body>
</html>
"""
