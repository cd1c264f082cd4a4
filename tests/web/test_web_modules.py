"""The page's modules alone, in the browser: Markdown, code, event streams, Prometheus' text, conversations as trees."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
from browser import Browser
from chatting import fresh, visit
from prometheus_client.parser import text_string_to_metric_families
from scripted import ScriptedServer


@pytest.fixture(scope="module")
def modules(chromium: Browser) -> Iterator[Browser]:
    with ScriptedServer() as server:
        fresh(chromium)
        visit(chromium, server.url)
        yield chromium
        chromium.open("about:blank")


def call(browser: Browser, module: str, script: str, *arguments: Any) -> Any:
    """What `script` returns with the module as m and the arguments as args."""
    return browser.run(f"const m = await import('/ui/{module}.js'); {script}", *arguments)


RENDER = """
    const view = new m.MarkdownView();
    if (args[1]) for (let length = 1; length < args[0].length; length++) view.update(args[0].slice(0, length));
    view.update(args[0]);
    const shown = (name, nodes) => `<${name}>${[...nodes].map(show).join("")}</${name}>`;
    const show = (node) => node.nodeType === 3 ? node.data : shown(node.localName, node.childNodes);
    return [...view.element.childNodes].map(show).join("").replace(/<(br|hr|input)><\\/\\1>/g, "<$1>");
"""

PIECES = {
    "a **b *c* d** _e_ ~~f~~ `g*h*`": "<p>a <strong>b <em>c</em> d</strong> <em>e</em> <s>f</s> <code>g*h*</code></p>",
    "***both*** snake_case_name 2*3*4": "<p><strong><em>both</em></strong> snake_case_name 2<em>3</em>4</p>",
    "2 * 3 * 4 and **open": "<p>2 * 3 * 4 and **open</p>",
    "one\ntwo  \nthree\\\nfour": "<p>one<br>two<br>three<br>four</p>",
    "# A #\n\n### B": "<h3>A</h3><h5>B</h5>",
    "***\ntext\n\n---": "<hr><p>text</p><hr>",
    "> a\n> b\n\nc": "<blockquote><p>a<br>b</p></blockquote><p>c</p>",
    "- a\n- b\n\n  c": "<ul><li><p>a</p></li><li><p>b</p><p>c</p></li></ul>",
    "- a\n  - b\n\n    c\n- d": "<ul><li><p>a</p><ul><li><p>b</p><p>c</p></li></ul></li><li><p>d</p></li></ul>",
    "1. a\n  - b\n2. c": "<ol><li><span>a</span><ul><li><span>b</span></li></ul></li><li><span>c</span></li></ol>",
    "- [x] a\n- [ ] b": "<ul><li><input><span>a</span></li><li><input><span>b</span></li></ul>",
    "* a\n\ntext": "<ul><li><span>a</span></li></ul><p>text</p>",
    "[a](https://x.y/z_(1)) <https://q.r>": "<p><a>a</a> <a>https://q.r</a></p>",
    "http://%*b* (http://x.y)?!": "<p>http://%*b* (<a>http://x.y</a>)?!</p>",
    "see https://x.y/z_(1)). ok": "<p>see <a>https://x.y/z_(1)</a>). ok</p>",
    "[a](javascript:x) [b](/v1/models)": "<p>[a](javascript:x) [b](/v1/models)</p>",
    "<b>x</b> &lt;i&gt; a<br>b": "<p><b>x</b> <i> a<br>b</p>",
    r"\*a\* \(x_1*y_1\) $$a_b$$": "<p>*a* <code>\\(x_1*y_1\\)</code> <code>$$a_b$$</code></p>",
    "``a ` b`` and ` open": "<p><code>a ` b</code> and ` open</p>",
}


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "growing"])
def test_markdown(modules: Browser, whole: bool) -> None:
    for text, shown in PIECES.items():
        assert call(modules, "render", RENDER, text, not whole) == shown, text


def test_tables_and_code(modules: Browser) -> None:
    table = "| a | b\\|c |\n|:-:|--:|\n| `x|y` | z |\n| 1 |\n\nend"
    shown = call(modules, "render", RENDER, table, False)
    assert shown.startswith("<div><table><thead><tr><th>a</th><th>b|c</th></tr></thead>")
    assert "<td><code>x|y</code></td><td>z</td></tr><tr><td>1</td><td></td>" in shown
    assert shown.endswith("<p>end</p>")
    script = "return m.parseBlocks(args[0]).map(({kind, language, text, closed}) => [kind, language, text, closed])"
    fences = "```py\nx = '''\n\n```\n~~~~\n```\n~~~~\n```js\nopen"
    assert call(modules, "markdown", script, fences) == [
        ["code", "py", "x = '''\n", True],
        ["code", "", "```", True],
        ["code", "js", "open", False],
    ]


def test_highlighting_loses_nothing(modules: Browser) -> None:
    script = "return args[0].map(([text, language]) => m.highlight(text, language))"
    code = "def f(x):  # \"why\"\n    return f\"{x}\" + '''a\nb''' * 0x1F  // 2"
    languages = ["python", "js", "cpp", "rust", "sql", "bash", "html", "css", "json", "", "constructor", "brainfuck"]
    for pieces in call(modules, "highlight", script, [[code, language] for language in languages]):
        assert "".join(piece for _, piece in pieces) == code
    kinds = {piece: kind for kind, piece in call(modules, "highlight", script, [[code, "python"]])[0]}
    assert (kinds["def"], kinds['# "why"'], kinds["0x1F"]) == ("word", "comment", "number")
    assert kinds["'''a\nb'''"] == "string"
    [shell] = call(modules, "highlight", script, [["echo a#b $# #c\ndone#", "bash"]])
    assert [(kind, piece) for kind, piece in shell if kind] == [("word", "echo"), ("comment", "#c"), ("word", "done")]


def test_hostile_markdown_takes_no_time(modules: Browser) -> None:
    units = ("**a ", "[", "[a](", "`", "> ", "- ", "| a ", "<", "*_~", "``` ", "$$", "\\(", "a_")
    texts = [unit * (60_000 // len(unit)) for unit in units]
    texts.append("\n".join(">" * (i % 60) + "- " * 30 for i in range(600)))
    texts.append("\n".join("| a | b |\n|---|---|" for _ in range(3000)))
    near = ("{}`", "~~~", "~"), ("a|b\n-{}x", "", " "), ("http://x.y/{}", "", ")"), ("http://x.y/{}x", "", ".")
    texts += [text.format(first + 120_000 * unit) for text, first, unit in near]  # patterns that they nearly fit
    texts += ["http://%" * 15_000, f"~~~{' ' * 120_000}`"]
    begun = time.monotonic()
    counts = call(modules, "markdown", "return args[0].map((text) => m.parseBlocks(text).length)", texts)
    assert all(counts)
    assert time.monotonic() - begun < 30  # a square of 60,000 would take far longer


def test_event_streams_in_any_pieces(modules: Browser) -> None:
    text = ': hello\ndata: {"a": 1}\n\ndata:two\r\ndata: lines\r\n\r\nevent: x\ndata: é日\n\ndata: unfinished'
    expected = ['{"a": 1}', "two\nlines", "é日"]
    script = """return args[0].map((pieces) => {
        const parser = new m.EventParser();
        return pieces.flatMap((piece) => parser.push(piece));
    })"""
    dice = random.Random(1)
    splits = []
    for _ in range(200):
        cuts = sorted(dice.sample(range(len(text)), dice.randrange(0, 12)))
        splits.append([text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)])
    assert all(found == expected for found in call(modules, "sse", script, splits))


METRICS = """# HELP octavo:x A "thing" {of} sorts
# TYPE octavo:x counter
octavo:x_total{a="1",b="q\\"uo\\\\te\\n}"} 2.5
octavo:x_total{a="2",b=""} 1e3 1700000000
octavo:lat_bucket{le="0.1"} 10
octavo:lat_bucket{le="1.0"} 90
octavo:lat_bucket{le="+Inf"} 100
octavo:lat_sum 55
octavo:lat_count 100
bad line
"""


def test_prometheus_text(modules: Browser) -> None:
    script = "return [...m.parse(args[0]).values()].flat().map(({name, labels, value}) => [name, labels, value])"
    good = METRICS.replace("bad line\n", "")
    expected = [[s.name, s.labels, s.value] for family in text_string_to_metric_families(good) for s in family.samples]
    found = [[name, labels, float(value)] for name, labels, value in call(modules, "prometheus", script, METRICS)]
    assert found == expected
    script = """
        const s = m.parse(args[0]), h = m.histogram(s, "octavo:lat");
        const later = {...h, counts: h.counts.map((c) => 2 * c), sum: 2 * h.sum, count: 2 * h.count};
        const again = {...h, counts: [1, 0, 0], count: 1};
        return [m.total(s, "octavo:x_total"), m.total(s, "none"), m.histogram(s, "none"), h.counts,
            [0, 0.05, 0.5, 0.9, 0.95].map((q) => m.quantile(h, q)), m.since(later, h).counts, m.since(again, h).counts,
            m.since({...h, counts: [20, 70, 20], count: 110}, h).counts,
            m.quantile({bounds: [1], counts: [0]}, 0.5)];
    """
    assert call(modules, "prometheus", script, METRICS) == [
        *(1002.5, None, None, [10, 80, 10]),
        [0, 0.05, 0.55, 1, 1],
        *([10, 80, 10], [1, 0, 0], [20, 70, 20], None),
    ]


def test_trees(modules: Browser) -> None:
    script = """
        const c = m.newConversation({system: " Be kind. "});
        const say = (parent, role, content) => m.addNode(c, parent, {role, content, created: ++clock});
        let clock = 0;
        const a = say(null, "user", "a"), b = say(a.id, "assistant", "b"), d = say(b.id, "user", "d");
        const b2 = say(a.id, "assistant", "b2");
        const texts = () => m.shownPath(c).map((node) => node.content).join(" ");
        const seen = [texts()];
        m.showBranch(c, b); seen.push(texts());
        seen.push(m.toMessages(c, d.id).map(({role, content}) => `${role}:${content}`).join(" "));
        const [copy] = m.importAll(m.exportAll([c]));
        seen.push(m.shownPath(copy).map((node) => node.content).join(" "), String(copy.id !== c.id));
        m.removeNode(c, b); seen.push(texts(), String(Object.keys(c.nodes).length), m.titleOf(c));
        const loop = JSON.parse(m.exportAll([c]));
        Object.values(loop.conversations[0].nodes)[0].parent = b2.id;
        try { m.importAll(JSON.stringify(loop)); } catch (error) { seen.push(error.message); }
        return seen;
    """
    assert call(modules, "tree", script) == [
        *("a b2", "a b d", "system:Be kind. user:a assistant:b user:d", "a b d", "true", "a b2", "2", "a"),
        "Conversation 1: its messages do not follow each other.",
    ]


def test_imports_take_what_the_page_can_show(modules: Browser) -> None:
    script = """
        const file = (conversation) => `{"format": "octavo-conversations", "conversations": [${conversation}]}`;
        try {
            const [made] = m.importAll(file(args[0]));
            return [made.settings, m.shownPath(made).map((node) => node.content)];
        } catch (error) { return error.message; }
    """

    def read(nodes: str, settings: str = "{}") -> Any:
        return call(modules, "tree", script, f'{{"nodes": {nodes}, "settings": {settings}}}')

    nodes = '{"a": {"role": "user", "content": "A", "created": 1}, "b": %s}'
    below = '{"role": "assistant", "content": "B", "created": 2, "parent": "a"}'
    settings = '{"system": 5, "tools": [], "top_p": "1", "seed": 1e999, "top_k": 5, "temperature": null, "other": 1}'
    assert read(nodes % below, settings) == [{"top_k": 5}, ["A", "B"]]
    assert read(nodes % below, '{"system": "S", "tools": "T"}')[0] == {"system": "S", "tools": "T"}
    assert read(nodes % below.replace('"a"', '"c"')) == "Conversation 1 does not begin with a message of yours."
    assert read("{}", "null") == [{}, []]


MERGE = """
    const node = (id, parent, revision, content) => ({id, parent, revision, content: content ?? `${id}${revision}`});
    const made = (nodes, more) => ({
        nodes: Object.fromEntries(nodes.map((each) => [each.id, each])),
        title: "", settings: {}, updated: 1, leaf: nodes.at(-1)?.id ?? null, ...more,
    });
    const [before, mine, kept] = args.map(([nodes, more]) => made(nodes.map((each) => node(...each)), more));
    m.merge(mine, kept, m.stateOf(before));
    const contents = Object.values(mine.nodes).map(({content}) => content).sort();
    return [contents.join(" "), mine.leaf, mine.title, mine.settings];
"""


def test_two_copies_become_one(modules: Browser) -> None:
    a, b, c = ("a", None, 1), ("b", "a", 1), ("c", "b", 1)

    def merged(mine: list[Any], kept: list[Any], *, ours: Any = None, theirs: Any = None) -> list[Any]:
        found: list[Any] = call(modules, "merge", MERGE, [[a, b]], [mine, ours or {}], [kept, theirs or {}])
        return found

    assert merged([a, b], [a, b, c])[:2] == ["a1 b1 c1", "c"]  # shown, as it follows what is shown
    assert merged([a, b, c], [a, b])[:2] == ["a1 b1 c1", "c"]
    assert merged([a, b, c], [a, b, ("d", "a", 1)])[:2] == ["a1 b1 c1 d1", "c"]  # two branches
    assert merged([a], [a, b])[:2] == ["a1", "a"]
    assert merged([a, b], [a])[:2] == ["a1", "a"]
    assert merged([a], [a, b, c])[:2] == ["a1 b1 c1", "c"]  # what was written on is not taken away
    assert merged([a, ("b", "a", 2)], [a])[:2] == ["a1 b2", "b"]
    assert merged([a, ("b", "a", 2)], [a, ("b", "a", 3)])[0] == "a1 b3"
    assert merged([], [])[:2] == ["", None]
    assert merged([a], [a], ours={"title": "A"})[2:] == ["A", {}]
    assert merged([a], [a], ours={"settings": {"top_k": 1}}, theirs={"title": "B"})[2:] == ["B", {"top_k": 1}]
