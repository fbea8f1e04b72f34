"""The server seen from outside: health, metrics, and the page in a real browser."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
from dataclasses import replace

import pytest

from mrsi_gadgets.data import Geometry
from mrsi_gadgets.errors import ConfigError, MrsiError
from mrsi_gadgets.gadgets.scan import ScanOptions, run_scan
from mrsi_gadgets.gadgets.watch import ScanWatch
from mrsi_gadgets.mrd.header import parse_header
from mrsi_gadgets.mrd.profile import read_protocol
from mrsi_gadgets.server import web as web_module
from mrsi_gadgets.server.monitor import KEPT, Monitor
from mrsi_gadgets.server.web import _READERS, WebServer
from mrsi_gadgets.stream.messages import Close, ConfigFile, Header
from mrsi_gadgets.stream.wire import encode
from served import connected, opening, serving, session, wait_until
from small_scan import small_scan

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def monitor():
    return Monitor()


@pytest.fixture
def site(monitor):
    web = WebServer(monitor, 0)
    web.start()
    yield f"http://127.0.0.1:{web.port}"
    web.stop()


def get(address, **headers):
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=10) as answer:
        return answer.read().decode(), dict(answer.headers)


def watched_scan(monitor, number=1, scan=None, config="fourier"):
    scan = scan or small_scan()
    monitor.begins(number, "127.0.0.1:5")
    watch = ScanWatch(lambda what: monitor.told(number, json.loads(json.dumps(what, allow_nan=False))))
    messages = iter([ConfigFile(config), Header(scan.header_xml), *scan.readouts])
    try:
        run_scan(messages, lambda message: None, ScanOptions(device="cpu"), watch=watch)
    except MrsiError as error:
        monitor.ends(number, failure=str(error), cause="error")
    else:
        monitor.ends(number)


def test_health_counts_running_sessions(monitor, site):
    monitor.begins(1, "127.0.0.1:5")
    told = json.loads(get(site + "/health")[0])
    assert told["status"] == "ok"
    assert told["sessions_running"] == 1
    monitor.ends(1)
    assert json.loads(get(site + "/health")[0])["sessions_running"] == 0


def test_a_scan_tells_counts_maps_and_spectra(monitor):
    scan = small_scan()
    watched_scan(monitor)
    (session,) = monitor.summaries()
    assert session["state"] == "finished"
    assert session["readouts"] == {"noise": 2, "water_reference": 48, "metabolite": 48}
    assert session["about"]["expected"] == 48
    assert session["filled"]["metabolite"]["shape"] == [8, 6]
    assert session["latency_s"] > 0
    assert session["about"]["sides"] == ["R", "L", "A", "P"]
    pictures = monitor.pictures(1)
    assert pictures["preview"]["title"] == "water"
    titles = [one["title"] for one in pictures["maps"]]
    assert "tNAA" in titles
    assert "tNAA SD" in titles
    assert len(pictures["spectra"]) >= 1
    spectrum = pictures["spectra"][0]
    # NAA is the highest line of data and fit below 2.5 ppm
    near = [(value, ppm) for ppm, value in zip(spectrum["ppm"], spectrum["fit"], strict=True) if ppm < 2.5]
    assert max(near)[1] == pytest.approx(2.01, abs=0.03)
    assert scan.protocol.measurement_id not in json.dumps(monitor.summaries())


def test_a_scan_tells_what_its_processing_doubts(monitor):
    scan = small_scan()
    watched_scan(monitor, scan=scan.with_readouts(scan.water + scan.metabolites))
    assert any("no noise scan" in sentence for sentence in monitor.summaries()[0]["warnings"])


def test_a_scan_that_fails_shows_its_sentence_and_no_map(monitor):
    watched_scan(monitor)
    broken = small_scan()
    watched_scan(monitor, 2, broken.with_readouts(broken.noise + broken.water))
    newest = monitor.summaries()[0]
    assert newest["state"] == "failed"
    assert newest["failure"]
    assert newest["maps"] == 0


def test_metrics_count_outcomes_and_causes(monitor, site):
    watched_scan(monitor)
    sent = monitor.summaries()[0]["images"]
    # exact maps, pictures, deviations, bounds: many more than the page shows
    assert sent > 100
    for number, cause in ((2, "died"), (3, "died"), (4, "refused")):
        monitor.begins(number, "x")
        monitor.ends(number, failure="no", cause=cause)
    text, headers = get(site + "/metrics")
    assert headers["content-type"].startswith("text/plain")
    for line in (
        'mrsi_sessions_total{outcome="finished"} 1.0', 'mrsi_sessions_total{outcome="failed"} 3.0',
        'mrsi_failures_total{cause="died"} 2.0', 'mrsi_failures_total{cause="refused"} 1.0', "mrsi_readouts_total 98.0",
        f"mrsi_images_total {sent}.0",
        "mrsi_sessions_running 0.0", "mrsi_latency_seconds_count 1.0",
    ):  # fmt: skip
        assert line in text.splitlines(), line


def test_only_the_last_sessions_are_kept_and_running_ones_always(monitor):
    monitor.begins(1, "x")
    for number in range(2, KEPT + 10):
        monitor.begins(number, "x")
        monitor.ends(number)
    numbers = [session["number"] for session in monitor.summaries()]
    assert numbers[-1] == 1
    assert len(numbers) <= KEPT + 1


def test_foreign_host_names_are_refused(site):
    # a page elsewhere whose name is made to point here (DNS rebinding) must not read scans
    with pytest.raises(urllib.error.HTTPError) as refused:
        get(site + "/health", Host="evil.example")
    assert refused.value.code == 400
    refused.value.close()


def test_a_number_that_is_none_of_a_session_is_not_found(site):
    for number in ("9" * 5000, "7", "-1", "%D9%A1"):
        with pytest.raises(urllib.error.HTTPError) as missing:
            get(f"{site}/sessions/{number}")
        assert missing.value.code == 404
        missing.value.close()


def test_connections_that_ask_nothing_are_bounded_and_closed(site, monkeypatch):
    monkeypatch.setattr(web_module, "_CONNECTIONS", 4)
    monkeypatch.setattr(web_module, "_FIRST_REQUEST_S", 1.0)
    port = int(site.rpartition(":")[2])
    idle = [connected(port) for _ in range(4)]
    idle[1].sendall(b"GET /health HTTP/1.1\r\nHost:")
    with connected(port) as fifth:
        assert ended(fifth)
    for sock in idle:
        assert ended(sock)
        sock.close()
    assert json.loads(get(site + "/health")[0])["uptime_s"] >= 0


def ended(sock):
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def sent_away(text):
    return b" 503 " in text or text.endswith(b"0\r\n\r\n")


def test_more_pages_than_may_be_open_are_sent_away_also_when_they_come_at_once(site, monitor, monkeypatch):
    monitor.begins(1, "x")
    port = int(site.rpartition(":")[2])
    pages = [connected(port) for _ in range(_READERS + 6)]
    for page in pages:
        page.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    heard = [b""] * len(pages)

    def decided():
        for i, page in enumerate(pages):
            page.settimeout(0.01)
            with contextlib.suppress(TimeoutError):
                heard[i] += page.recv(1 << 16)
        return all(b"event: session" in text or sent_away(text) for text in heard)

    assert wait_until(decided)
    assert sum(b"event: session" in text for text in heard) == _READERS
    for page in pages:
        page.close()


def test_a_page_does_not_cost_what_a_header_says_of_its_counters():
    told = []
    watch = ScanWatch(told.append)
    scan = small_scan()
    protocol = replace(
        read_protocol(parse_header(scan.header_xml), {}), geometry=Geometry((65535, 65535, 1), (200, 180, 15))
    )
    watch.begins(protocol, parse_header(scan.header_xml), "fourier")
    watch.readout(scan.metabolites[0])
    watch.ended()
    assert told[-2]["readouts"] == {"metabolite": 1}
    assert "filled" not in told[-2]
    assert not watch._seen


def test_the_page_allows_no_foreign_content(site):
    page, headers = get(site + "/")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "http" not in page.replace("http-equiv", "")


def test_a_taken_port_is_refused(site):
    with pytest.raises(ConfigError, match="choose another"):
        WebServer(Monitor(), int(site.rpartition(":")[2]))


def test_a_live_server_tells_how_its_sessions_went(tmp_path):
    scan = small_scan()
    with serving(web_port=0) as live:
        site = f"http://127.0.0.1:{live.web_port}"
        session(live.port, [*opening(scan), *scan.readouts, Close()])
        session(live.port, [ConfigFile("nothing"), Header(scan.header_xml), Close()])
        with connected(live.port) as sock:
            sock.sendall(b"".join(encode(m) for m in [*opening(scan), *scan.readouts[:60]]))
            assert wait_until(lambda: json.loads(get(site + "/health")[0])["sessions_running"] == 1)
        wanted = {
            'mrsi_sessions_total{outcome="finished"} 1.0', 'mrsi_sessions_total{outcome="failed"} 2.0',
            'mrsi_failures_total{cause="error"} 1.0', 'mrsi_failures_total{cause="peer lost"} 1.0',
        }  # fmt: skip
        assert wait_until(lambda: wanted <= set(get(site + "/metrics")[0].splitlines()))
        first = json.loads(get(site + "/sessions/1")[0])
        assert {"tNAA", "tNAA SD", "B0"} <= {one["title"] for one in first["maps"]}


# --- in a browser ---------------------------------------------------------------------------------------------------


def test_the_page_follows_a_scan_and_shows_failures(monitor, site, browser):
    from selenium.webdriver.common.by import By

    def wait_for(condition):
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(browser, 20).until(lambda _: condition())

    def all_of(selector):
        return browser.find_elements(By.CSS_SELECTOR, selector)

    browser.get(site)
    wait_for(lambda: "connected" in browser.find_element(By.ID, "alive").text)
    assert "No scan has come yet" in browser.find_element(By.TAG_NAME, "nav").text
    monitor.begins(7, "127.0.0.1:99")
    wait_for(lambda: "Session 7" in browser.find_element(By.TAG_NAME, "nav").text)
    monitor.ends(7, failure="<b>no</b> water reference came; send one", cause="error")
    wait_for(lambda: all_of("#failure"))
    # text of a peer is shown as text
    assert browser.find_element(By.ID, "failure").text == "<b>no</b> water reference came; send one"
    watched_scan(monitor, 8)
    wait_for(lambda: all_of('figure[data-map="tNAA"]'))
    wait_for(lambda: "finished" in browser.find_element(By.CSS_SELECTOR, 'button[data-number="8"]').text)
    assert "48 metabolite" in browser.find_element(By.ID, "readouts").text
    assert len(all_of("figure[data-voxel] canvas")) >= 1
    colours = browser.execute_script(
        "const c = document.querySelector('figure[data-map=\"tCho\"] canvas'); "
        "return new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size"
    )
    assert colours > 10
    browser.find_element(By.CSS_SELECTOR, 'button[data-number="7"]').click()
    wait_for(lambda: all_of("#failure"))
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
