"""Measure the cost of Ray Serve: HTTP requests against the same encoder and index without it.

    python benchmarks/serving.py [PART ...] [--seconds 10] [--rounds 3] [--json serving.json]

Parts: ids, embed, search, mixed, kill, packs. All parts run by default. The benchmark needs:

- Debian's `wrk`,
- the emoji packs of `make demo` in `--run`, with French and Czech packs beside the German one: run
  `mla demo --language fr --run runs/fr`, copy runs/fr/packs/fr to runs/demo/packs, and do the same
  for Czech,
- one earlier run of `mla serve`, which makes the index.

Compared sides take turns in one run. Ratios are ratios of medians.

- ids: search 200 names in three languages over HTTP and with the library in this process, and
  compare the ids.
- embed: requests of 32 texts to /v1/embeddings/text, against `LanguagePack.encode_text` with
  batches of 32 in this process.
- search: requests of single texts to /v1/search over 32 connections, against the same app without
  Ray in one uvicorn process with encoder and index. Both coalesce requests into batches.
- mixed: batches of 8 languages against batches of one language in this process. The packs have
  learned vocabularies and random weights, because speed does not depend on the weights.
- kill: SIGKILL of one replica after another under 50 requests/s. Counts failed requests.
- packs: add 5 packs to the store and remove them under 50 requests/s. Counts failed requests.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import quote

import httpx2
import numpy as np
import psutil
import torch

from mla_ray.datasets.emoji import Emoji
from mla_ray.evaluation.evaluation import encode_query
from mla_ray.index.collection import CaptionIndex
from mla_ray.index.ingest import space_of
from mla_ray.model.encoder import EmbeddingBlock, LanguageEncoder, learned_rows
from mla_ray.model.native import Native
from mla_ray.model.tokenizers import LanguageTokenizer, learn
from mla_ray.packs.card import make_card
from mla_ray.packs.library import load_packs
from mla_ray.packs.mixed_batch import encode_mixed
from mla_ray.packs.pack import LanguagePack
from mla_ray.runtime.cluster import free_port

Figures = dict[str, Any]
"""Measurements, in the format of the JSON file."""

NATIVE, LANGUAGES = "emoji-clip", ("de", "fr", "cs")
MIXED = ("de", "fr", "cs", "es", "it", "nl", "tr", "ru")
TEXTS, CONNECTIONS, RATE = 32, 32, 50


class Bench:
    """Copies of the demo's packs and index, and the servers that use them."""

    def __init__(
        self,
        native: Native,
        run: Path,
        data: Path,
        scratch: Path,
        languages: tuple[str, ...] = LANGUAGES,
    ) -> None:
        self.native, self.scratch = native, scratch
        self.packs = scratch / "packs"
        for language in languages:
            shutil.copytree(run / "packs" / language, self.packs / language)
        self.index = run / "showcase" / "index"
        emoji = Emoji(data / "emoji")
        rng = np.random.default_rng(0)
        self.names = {
            language: [label.name for label in emoji.labels(language).values()]
            for language in ("en", *MIXED)
        }
        self.queries = [
            (language, str(name))
            for language in languages
            for name in rng.choice(self.names[language], 67, replace=False)
        ][:200]

    def searches(self) -> str:
        """Return a script of wrk that sends the queries as searches."""
        paths = [f"/v1/search?language={lang}&q={quote(text)}" for lang, text in self.queries]
        return (
            f"local paths = {lua_list(paths)}\nlocal n = 0\n"
            'request = function() n = n + 1 return wrk.format("GET", paths[n % #paths + 1]) end\n'
        )

    @contextmanager
    def server(self, kind: str, index: str | None = None) -> Iterator[str]:
        """Start a server, and yield its URL.

        Args:
            kind: `serve` for `mla serve`, or `plain` for the app on uvicorn.
            index: URL of the index. By default the server has a copy of the demo's.

        """
        if index is None:
            folder = self.scratch / f"index-{kind}"
            if not folder.exists():
                shutil.copytree(self.index, folder)
            index = f"edge:{folder}"
        port = free_port()
        if kind == "serve":
            command = [str(Path(sys.executable).parent / "mla"), "serve", "--no-open", "--json"]
            command += ["--packs", str(self.packs), "--index", index, "--port", str(port)]
            environment = {}
        else:
            command = [sys.executable, "-m", "uvicorn", "--factory", "plain_app:build"]
            command += ["--port", str(port), "--no-access-log", "--log-level", "error"]
            command += ["--app-dir", str(Path(__file__).parent)]
            environment = {"MLA_PACKS": str(self.packs), "MLA_INDEX": index}
        url = f"http://127.0.0.1:{port}"
        log = (self.scratch / f"{kind}.log").open("w")
        with (
            log,
            subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | environment
            ) as process,
        ):
            self.process = psutil.Process(process.pid)
            try:
                for _ in range(600):
                    try:
                        if httpx2.get(f"{url}/healthz", timeout=5).status_code == 200:
                            break
                    except httpx2.HTTPError:
                        pass
                    time.sleep(0.2)
                yield url
            finally:
                process.terminate()


def wrk(url: str, connections: int, seconds: int, script: str, scratch: Path) -> Figures:
    """Run wrk with a Lua script. Return requests per second, latencies and failures."""
    path = scratch / "load.lua"
    path.write_text(script)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(path), url]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", out)
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    errors = re.search(r"Socket errors: (.*)", out)
    p50, p99 = (re.search(rf"^\s+{share}%\s+(\S+)", out, re.MULTILINE) for share in (50, 99))
    if not rate or not p50 or not p99:
        raise RuntimeError(out)
    return {
        "rate": float(rate[1]),
        "p50": p50[1],
        "p99": p99[1],
        "failed": int(bad[1]) if bad else 0,
        "errors": errors[1] if errors else "",
    }


def lua_list(items: list[str]) -> str:
    """Format strings as a Lua table."""
    return "{" + ",".join(json.dumps(item) for item in items) + "}"


def ids(bench: Bench) -> Figures:
    """Count the queries for which HTTP and the library return the same image ids."""
    answers = []
    with bench.server("serve") as url, httpx2.Client(base_url=url, timeout=30) as client:
        for language, text in bench.queries:
            params: dict[str, str | int] = {"q": text, "language": language, "k": 10}
            answer = client.get("/v1/search", params=params).raise_for_status().json()
            answers.append([hit["image_id"] for hit in answer["hits"]])
    packs = load_packs([bench.packs / language for language in LANGUAGES], bench.native)
    url = f"edge:{bench.scratch / 'index-serve'}"
    with CaptionIndex.open(url, space_of(bench.native), "images", create=False) as index:
        same = sum(
            [hit.entry.image_id for hit in index.search(vector, 10)] == ids
            for (language, text), ids in zip(bench.queries, answers, strict=True)
            for vector in encode_query(bench.native, packs, language, [text])
        )
    return {"queries": len(answers), "same": same}


def embed(bench: Bench, seconds: int, rounds: int) -> Figures:
    """Compare embedded texts per second over HTTP and in this process."""
    pack = load_packs([bench.packs / "de"], bench.native)["de"]
    names = bench.names["de"]
    batches = [names[start : start + TEXTS] for start in range(0, 1024, TEXTS)]
    rates: dict[str, list[float]] = {"in-process": [], "http base64": [], "http float": []}
    failed = 0

    def here() -> float:
        done, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            pack.encode_text(batches[done % len(batches)])
            done += 1
        return done * TEXTS / (time.perf_counter() - began)

    with bench.server("serve") as url:
        for number in range(rounds + 1):  # round 0 is the warm-up
            for encoding in ("base64", "float"):
                bodies = [
                    json.dumps(
                        {
                            "inputs": [{"text": text, "language": "de"} for text in batch],
                            "encoding": encoding,
                        }
                    )
                    for batch in batches
                ]
                script = (
                    f"local bodies = {lua_list(bodies)}\nlocal n = 0\n"
                    'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
                    'wrk.path = "/v1/embeddings/text"\n'
                    "request = function() n = n + 1\n"
                    "  return wrk.format(nil, nil, nil, bodies[n % #bodies + 1])\n"
                    "end\n"
                )
                result = wrk(url, 4, seconds, script, bench.scratch)
                failed += result["failed"]
                if number:
                    rates[f"http {encoding}"].append(result["rate"] * TEXTS)
            if number:
                rates["in-process"].append(here())
    medians = {name: median(measured) for name, measured in rates.items()}
    return {
        "texts/s": {name: round(rate) for name, rate in medians.items()},
        "ratio base64": round(medians["http base64"] / medians["in-process"], 2),
        "ratio float": round(medians["http float"] / medians["in-process"], 2),
        "rounds": {name: [round(rate) for rate in measured] for name, measured in rates.items()},
        "failed": failed,
        "torch threads here": torch.get_num_threads(),
    }


def search(bench: Bench, seconds: int, rounds: int) -> Figures:
    """Compare searches per second through Ray Serve and through uvicorn alone."""
    script = bench.searches()
    results: dict[str, list[Figures]] = {"serve": [], "plain": []}
    with bench.server("plain") as plain, bench.server("serve") as served:
        for number in range(rounds + 1):
            for name, url in (("serve", served), ("plain", plain)):
                result = wrk(url, CONNECTIONS, seconds, script, bench.scratch)
                if number:
                    results[name].append(result)
    rates = {name: median(r["rate"] for r in measured) for name, measured in results.items()}
    return {
        "requests/s": {name: round(rate) for name, rate in rates.items()},
        "ratio": round(rates["serve"] / rates["plain"], 2),
        "rounds": results,
    }


def mixed(bench: Bench, seconds: int, rounds: int) -> Figures:
    """Compare batches of one language with batches of eight languages."""
    native = bench.native
    packs = {}
    for language in MIXED:
        names = bench.names[language]
        vocabulary = learn(names, 8000)
        tokenizer = LanguageTokenizer.for_corpus(vocabulary, names, native.text.context_length)
        rows = learned_rows(len(tokenizer.tokens), native.text, torch.Generator().manual_seed(0))
        encoder = LanguageEncoder(native.text, EmbeddingBlock(rows, native.text), hidden=64)
        packs[language] = LanguagePack(make_card(native, language, encoder), encoder, tokenizer)
    batches: Figures = {}
    for size in (32, 128):
        # Both sides encode the same texts in sixteen batches, of one language or of all eight.
        texts = {
            lang: [(name, packs[lang]) for name in bench.names[lang][: 2 * size]] for lang in MIXED
        }
        single = [texts[lang][start : start + size] for lang in MIXED for start in (0, size)]
        whole = [texts[lang][n] for n in range(2 * size) for lang in MIXED]
        blend = [whole[start : start + size] for start in range(0, len(whole), size)]

        def rate(batches: list[list[tuple[str, LanguagePack]]]) -> float:
            done, began = 0, time.perf_counter()
            while time.perf_counter() - began < seconds / 4:
                for batch in batches:
                    done += len(encode_mixed(native, batch))
            return done / (time.perf_counter() - began)

        rate(single), rate(blend)
        pairs = [(rate(single), rate(blend)) for _ in range(rounds)]
        one, many = (median(side) for side in zip(*pairs, strict=True))
        batches[f"batch {size}"] = {
            "one language, texts/s": round(one),
            "eight, texts/s": round(many),
            "ratio": round(many / one, 2),
        }
    return batches


class Load:
    """Requests at a constant rate, sent without waiting for earlier answers."""

    def __init__(self, url: str, queries: list[tuple[str, str]]) -> None:
        self.url = url
        self.queries = queries
        self.outcomes: Counter[str] = Counter()
        self.slowest = 0.0

    async def run(self, until: Callable[[], bool]) -> None:
        """Send requests until `until` returns True, then wait for all answers."""
        limits = httpx2.Limits(max_connections=1000)
        async with httpx2.AsyncClient(base_url=self.url, timeout=60, limits=limits) as client:
            tasks, began, number = [], time.perf_counter(), 0
            while not until():
                tasks.append(asyncio.create_task(self._one(client, number)))
                number += 1
                await asyncio.sleep(max(0, began + number / RATE - time.perf_counter()))
            await asyncio.gather(*tasks)

    async def _one(self, client: httpx2.AsyncClient, number: int) -> None:
        language, text = self.queries[number % len(self.queries)]
        began = time.perf_counter()
        try:
            params: dict[str, str | int] = {"q": text, "language": language, "k": 5}
            answer = await client.get("/v1/search", params=params)
            self.outcomes[str(answer.status_code)] += 1
        except httpx2.HTTPError as error:
            self.outcomes[type(error).__name__] += 1
        self.slowest = max(self.slowest, time.perf_counter() - began)

    def as_dict(self) -> Figures:
        """Return the number of answers by status or error, and the slowest one in seconds."""
        return {"answers": dict(self.outcomes), "slowest, s": round(self.slowest, 2)}


def kill(bench: Bench, seconds: int) -> Figures:
    """Kill one replica of each deployment under load."""
    outcomes = {}
    with bench.server("serve") as url:
        for deployment in ("JointEncoder", "Index", "Ingress"):

            async def scene(deployment: str = deployment) -> Load:
                load, end = Load(url, bench.queries), time.perf_counter() + 2 * seconds
                running = asyncio.create_task(load.run(lambda: time.perf_counter() > end))
                await asyncio.sleep(2)
                name = f"ray::ServeReplica:mla-ray:{deployment}"
                victims = [
                    child
                    for child in bench.process.children(recursive=True)
                    if child.cmdline()[:1] == [name]
                ]
                victims[0].send_signal(signal.SIGKILL)
                await running
                return load

            outcomes[deployment] = asyncio.run(scene()).as_dict()
    return outcomes


def packs(bench: Bench, seconds: int) -> Figures:
    """Add and remove packs under load, and measure how long each change takes."""
    source = bench.packs / "de"
    added = ("af", "da", "nb", "sv", "is")
    live: list[float] = []
    gone: list[float] = []

    async def scene(url: str) -> Load:
        load, done = Load(url, bench.queries), False
        running = asyncio.create_task(load.run(lambda: done))
        async with httpx2.AsyncClient(base_url=url, timeout=30) as client:

            async def wait(language: str, status: int) -> float:
                began = time.perf_counter()
                while True:
                    params = {"q": "Hund", "language": language}
                    answer = await client.get("/v1/search", params=params)
                    if answer.status_code == status:
                        return time.perf_counter() - began
                    await asyncio.sleep(0.05)

            for language in added:
                card = json.loads((source / "card.json").read_text()) | {"language": language}
                draft = bench.packs / f".{language}"
                shutil.copytree(source, draft)
                (draft / "card.json").write_text(json.dumps(card))
                draft.rename(bench.packs / language)
                live.append(await wait(language, 200))
            for language in added:
                shutil.rmtree(bench.packs / language)
                gone.append(await wait(language, 404))
        done = True
        await running
        return load

    with bench.server("serve") as url:
        load = asyncio.run(scene(url))
    return load.as_dict() | {
        "live after at most, s": round(max(live), 2),
        "gone after at most, s": round(max(gone), 2),
    }


def run_parts(
    parts: dict[str, Callable[[], Figures]], names: Sequence[str], kept: Path | None
) -> None:
    """Run and print the named parts, and write their results to the file `kept` at the end."""
    results = {}
    for name in names:
        print(f"{name} …", file=sys.stderr, flush=True)
        results[name] = parts[name]()
        print(json.dumps({name: results[name]}, indent=2), flush=True)
    if kept:
        kept.write_text(json.dumps(results, indent=2) + "\n")


def main() -> None:
    """Parse the options, and run and print the requested parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ("ids", "embed", "search", "mixed", "kill", "packs")
    parser.add_argument("parts", nargs="*", choices=[*names, []], default=[])
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mla-serving-") as scratch:
        bench = Bench(Native.load(NATIVE), given.run, given.data, Path(scratch))
        timed: dict[str, Callable[[], Figures]] = {
            "ids": lambda: ids(bench),
            "embed": lambda: embed(bench, given.seconds, given.rounds),
            "search": lambda: search(bench, given.seconds, given.rounds),
            "mixed": lambda: mixed(bench, given.seconds, given.rounds),
            "kill": lambda: kill(bench, given.seconds),
            "packs": lambda: packs(bench, given.seconds),
        }
        run_parts(timed, given.parts or names, given.json)


if __name__ == "__main__":
    main()
