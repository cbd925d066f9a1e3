#!/usr/bin/env python3
"""Looks at the gateway's page as a reader does, in headless Chromium, and checks what it says against the API.

    page.py ADDRESS [--key KEY] [--shots FOLDER] [--expect-empty [--binary SLUICE]]

ADDRESS is that of a running gateway, such as http://127.0.0.1:8470. Chromium is driven by its own protocol over a pipe,
so nothing but Python's standard library is needed. Exits with 1 and the list of failed checks if the page is not right.
"""

import argparse
import base64
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request

LOOKS = [(1440, 1000, "light"), (1440, 1000, "dark"), (360, 780, "light"), (360, 780, "dark")]
PATIENCE = 20


class Chromium:
    """A headless browser behind a pipe: commands in, answers and events out, each ended by a zero byte."""

    def __init__(self, program):
        self.profile = tempfile.mkdtemp(prefix="sluice-page-")
        to_browser, self.output = os.pipe()
        self.input, from_browser = os.pipe()

        def pipes():
            # The protocol wants the descriptors 3 and 4; both ends may already sit on one of them.
            reading, writing = os.dup(to_browser), os.dup(from_browser)
            spare = [os.dup(reading), os.dup(writing)]
            os.dup2(spare[0], 3)
            os.dup2(spare[1], 4)
            os.set_inheritable(3, True)
            os.set_inheritable(4, True)

        self.process = subprocess.Popen(
            [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync",
             "--disable-component-update", "--disable-default-apps", "--disable-extensions", "--disable-dev-shm-usage",
             "--no-first-run", "--hide-scrollbars", "--remote-debugging-pipe", f"--user-data-dir={self.profile}", "about:blank"],
            close_fds=False, preexec_fn=pipes, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(from_browser)
        self.buffer = b""
        self.number = 0
        self.session = None
        self.events = []
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def read(self):
        while b"\0" not in self.buffer:
            piece = os.read(self.input, 1 << 16)
            if not piece:
                raise RuntimeError("Chromium went away")
            self.buffer += piece
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.output, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def evaluate(self, expression):
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, expression):
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if self.evaluate(expression):
                return True
            time.sleep(0.1)
        return False

    def look(self, width, height, scheme):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def shot(self, path):
        picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(picture["data"]))

    def close(self):
        self.process.terminate()
        self.process.wait(timeout=10)
        shutil.rmtree(self.profile, ignore_errors=True)


class Checks:
    def __init__(self):
        self.failed = []
        self.done = 0

    def that(self, what, holds, detail=""):
        self.done += 1
        if not holds:
            self.failed.append(f"{what}{': ' + str(detail) if detail else ''}")


def money(nanos):
    """The page's short form of an amount, by another road: decimal text instead of BigInt."""
    digits = 2 if abs(nanos) >= 10**9 else 6 if abs(nanos) >= 10**4 else 9
    if nanos == 0:
        return "$0"
    unit = 10 ** (9 - digits)
    rounded = (abs(nanos) + unit // 2) // unit
    whole, fraction = divmod(rounded, 10**digits)
    return f"{'−' if nanos < 0 else ''}${whole:,}.{fraction:0{digits}d}"


def api(address, key, path):
    request = urllib.request.Request(f"{address}/api/{path}")
    if key:
        request.add_header("authorization", f"Bearer {key}")
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        return json.load(response)


def check_headers(address, checks):
    with urllib.request.urlopen(address + "/", timeout=PATIENCE) as response:
        policy = response.headers.get("content-security-policy", "")
        checks.that("a strict content security policy", "default-src 'none'" in policy and "unsafe" not in policy, policy)
        checks.that("no sniffing", response.headers.get("x-content-type-options") == "nosniff")


def open_page(browser, url, checks, what):
    browser.call("Page.navigate", url="about:blank")
    browser.call("Page.navigate", url=url)
    ready = browser.wait("document.getElementById('main')?.dataset.ready === 'yes'")
    checks.that(f"{what} is drawn", ready, browser.evaluate("document.body?.innerText.slice(0, 400)"))
    return ready


def check_width(browser, checks, what):
    overflow = browser.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    checks.that(f"{what} does not scroll sideways", overflow <= 0, f"{overflow} px too wide")


def check_advice(browser, checks, binary):
    """The command that an empty page shows is one that the binary understands."""
    shown = browser.evaluate("document.getElementById('try').textContent")
    said = subprocess.run([binary, *shlex.split(shown)[1:]], capture_output=True, text=True, timeout=60)
    checks.that("the command on the empty page is a real one", "Usage:" not in said.stderr, said.stderr)


def check_overview(browser, address, key, checks, empty):
    summary = api(address, key, "summary?minutes=60&buckets=60&group_by=route")
    text = browser.evaluate("document.getElementById('main').innerText")
    if empty:
        checks.that("an empty page says what to do", "sluice ask" in text, text[:300])
        return
    total = summary["total"]
    tiles = browser.evaluate("Object.fromEntries([...document.querySelectorAll('.tile')].map(t => [t.children[0].textContent, t.children[1].textContent]))")
    checks.that("there were requests to look at", total["requests"] > 0)
    checks.that("money spent is the API's", tiles.get("Spent") == money(int(total["cost_nano_usd"])), tiles)
    checks.that("money saved is the API's and called an estimate",
                tiles.get("Saved (estimate)") == money(int(total["saved_nano_usd"])), tiles)
    checks.that("requests are the API's", tiles.get("Requests") == f"{total['requests']:,}", tiles)
    for group in summary["groups"]:
        checks.that(f"route {group['group']!r} is in the legend", (group["group"] or "none (refused)") in text)
    bars = browser.evaluate("document.querySelectorAll('svg.chart').length")
    checks.that("two charts with words for those who can't see them", bars == 2 and browser.evaluate(
        "[...document.querySelectorAll('svg[role=img]')].every(svg => svg.getAttribute('aria-label'))"), bars)
    links = browser.evaluate("[...document.querySelectorAll('#decisions a')].map(a => a.hash.slice(7))")
    entries = api(address, key, f"entries?limit={len(links)}")["entries"]
    checks.that("the latest decisions are listed, newest first", links and links == [entry["id"] for entry in entries], links[:3])
    names = browser.evaluate("[...document.querySelectorAll('select, input')].every(field => field.labels.length > 0)")
    checks.that("every field has a label", names)


def check_story(browser, address, key, checks):
    """Entries of every kind that there is: each one's story says what the API says."""
    entries = api(address, key, "entries?limit=200")["entries"]
    kinds = {}
    for entry in entries:
        kinds.setdefault(((entry["decision"] or {}).get("route"), entry["status"]), entry)
        if entry["labels"]:
            kinds.setdefault(("labelled", entry["status"]), entry)
    for (route, status), entry in kinds.items():
        what = f"the story of a {route} entry that ended {status}"
        browser.call("Page.navigate", url=f"{address}/#entry/{entry['id']}")
        there = browser.wait(f"document.querySelector('.facts code')?.textContent === '{entry['id']}'")
        checks.that(f"{what} is drawn", there)
        if not there:
            continue
        text = browser.evaluate("document.getElementById('main').innerText")
        exact = f"${int(entry['cost_nano_usd']) / 1e9:.9f}"
        checks.that(f"{what} gives the exact cost", exact in text, exact)
        if entry["decision"]:
            checks.that(f"{what} gives the reason", entry["decision"]["reason"]["detail"] in text)
            for candidate in entry["decision"]["candidates"]:
                checks.that(f"{what} names {candidate['model']} and what excluded it",
                            candidate["model"] in text and candidate["excluded_by"] in text, candidate)
        for name, value in entry["labels"].items():
            checks.that(f"{what} gives the label {name} as text", f"{name} = {value}" in text, value)
        foreign = browser.evaluate("document.querySelectorAll('#content :is(img, script, iframe, style)').length")
        checks.that(f"nothing in {what} became markup", foreign == 0, foreign)
        rows = browser.evaluate("document.querySelectorAll('#attempts tbody tr').length")
        checks.that(f"{what} has a row for each attempt", rows == len(entry["attempts"]), rows)
        check_width(browser, checks, what)
    return kinds


def check_quiet(browser, address, checks):
    """Nothing was asked of another origin, nothing was blocked, nothing failed."""
    for event in browser.events:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            url = parameters["request"]["url"]
            checks.that("only the gateway is asked", url.startswith((address, "data:", "about:")), url)
        if method == "Runtime.exceptionThrown":
            checks.that("no script fails", False, parameters["exceptionDetails"])
        if method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            checks.that("nothing is blocked or missing", False, parameters["entry"].get("text"))


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("address")
    arguments.add_argument("--key", help="key for a gateway that wants one: it is typed into the page's field")
    arguments.add_argument("--shots", type=pathlib.Path, help="folder for screenshots")
    arguments.add_argument("--expect-empty", action="store_true", help="the gateway has served nothing yet")
    arguments.add_argument("--binary", help="tries the command that an empty page shows")
    given = arguments.parse_args()
    address = given.address.rstrip("/")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not program:
        sys.exit("chromium is not here; on Debian: apt-get install chromium")
    if given.shots:
        given.shots.mkdir(parents=True, exist_ok=True)
    checks = Checks()
    check_headers(address, checks)
    browser = Chromium(program)
    try:
        if given.key:
            browser.call("Page.navigate", url=address + "/")
            asked = browser.wait("document.getElementById('key')?.open && document.body.innerText.includes('a key is needed')")
            checks.that("without a key the page asks for one", asked)
            browser.evaluate(f"document.getElementById('key-field').value = {json.dumps(given.key)};"
                             "document.getElementById('key-form').requestSubmit()")
            checks.that("the key opens the page", browser.wait("document.getElementById('main').dataset.ready === 'yes'"))
            # The refusals above are what the check wanted to see.
            browser.events.clear()
        for width, height, scheme in LOOKS:
            look = f"{width} px, {scheme}"
            browser.look(width, height, scheme)
            if open_page(browser, address + "/", checks, f"the overview at {look}"):
                check_width(browser, checks, f"the overview at {look}")
                if given.shots:
                    browser.shot(given.shots / f"overview-{width}-{scheme}.png")
        check_overview(browser, address, given.key, checks, given.expect_empty)
        if given.expect_empty and given.binary:
            check_advice(browser, checks, given.binary)
        if not given.expect_empty:
            browser.look(360, 780, "light")
            kinds = check_story(browser, address, given.key, checks)
            for width, height, scheme in LOOKS if given.shots else []:
                browser.look(width, height, scheme)
                for (route, status), entry in kinds.items():
                    browser.call("Page.navigate", url=f"{address}/#entry/{entry['id']}")
                    browser.wait(f"document.querySelector('.facts code')?.textContent === '{entry['id']}'")
                    browser.shot(given.shots / f"entry-{route}-{status}-{width}-{scheme}.png")
        browser.call("Page.navigate", url=f"{address}/#entry/00000000-0000-7000-8000-000000000000")
        before = len(browser.events)
        checks.that("an unknown entry is said to be unknown", browser.wait("document.body.innerText.includes('there is no')"))
        del browser.events[before:]
        check_quiet(browser, address, checks)
    finally:
        browser.close()
    print(f"{checks.done} checks of the page, {len(checks.failed)} failed")
    for failure in checks.failed:
        print(f"  FAILED {failure}")
    sys.exit(1 if checks.failed else 0)


if __name__ == "__main__":
    main()
