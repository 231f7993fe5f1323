"""Hosts, origins, proxies and prefixes, names of keys: what a request passes before a route sees it."""

from __future__ import annotations

import asyncio
import json
import logging

import httpx
import pytest
from pydantic import ValidationError

from app.http.hosts import host_name
from app.logs import JsonFormatter
from app.settings import Settings
from tests.connections import Connection
from tests.scripted import ScriptedUpscaler
from tests.service import noise, png, scripted_app

PNG = {"content-type": "image/png"}
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def ask(tmp_path):
    """Sends requests to a scripted service with these settings; each is (method, path, headers)."""

    def send(*requests, peer="127.0.0.1", **settings):
        app = scripted_app(tmp_path, settings, lightweight_x2=ScriptedUpscaler())

        async def exchange():
            async with app.router.lifespan_context(app):
                await app.state.service.boot(lambda: None)
                transport = httpx.ASGITransport(app, client=(peer, 1234))
                async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                    return [
                        await client.request(
                            method, path, headers=headers, content=png(noise(8, 8)) if method == "POST" else None
                        )
                        for method, path, headers in requests
                    ]

        return asyncio.run(exchange())

    return send


def lines(caplog):
    return [json.loads(JsonFormatter().format(each)) for each in caplog.records if each.name == "app.access"]


# Hosts


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("my.localhost", 200),
        ("127.0.0.1:80", 200),
        ("[::1]:8000", 200),
        ("localhost.", 200),
        ("rebound.example", 421),
        ("127.0.0.1.rebound.example", 421),
        ("localhost.rebound.example", 421),
        ("notlocalhost", 421),
        (".localhost", 421),
        ("[::1]rebound.example", 421),
        ("localhost:rebound.example", 421),
        ("10.0.0.1", 421),
        ("", 421),
    ],
)
def test_on_loopback_other_names_are_refused(ask, host, status):
    """A page whose name was rebound to this machine is refused; the problem document names the setting."""
    (answer,) = ask(("GET", "/v1/variants", {"host": host}))
    assert answer.status_code == status
    if status == 421:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"] == "misdirected_request"
        assert "SWIN2SR_ALLOWED_HOSTS" in answer.json()["detail"]
        assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_probes_come_by_address(ask):
    """Health and metrics answer under any name; what only begins like them does not."""
    other = {"host": "10.1.2.3:8000"}
    paths = ("/health/live", "/health/ready", "/v2/health/live", "/metrics", "/healthy", "/")
    answers = ask(*(("GET", path, other) for path in paths))
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 421, 421]


def test_named_hosts_replace_the_loopback_names(ask):
    """With a star for all names below a domain; elsewhere than on loopback any name is right."""
    hosts = ("images.example", "a.photos.example", "photos.example", "localhost")
    requests = [("GET", "/v1/variants", {"host": host}) for host in hosts]
    named = ask(*requests, allowed_hosts="Images.Example,*.photos.example")
    assert [answer.status_code for answer in named] == [200, 200, 421, 421]
    for settings in ({"host": "0.0.0.0"}, {"allowed_hosts": "*"}):
        assert {answer.status_code for answer in ask(*requests, **settings)} == {200}


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("A.b:80", "a.b"),
        ("[::1]:80", "[::1]"),
        ("[::1]", "[::1]"),
        (" x ", "x"),
        ("x.", "x"),
        ("x:y", ""),
        ("[::1", ""),
    ],
)
def test_a_host_is_read_without_its_port(header, name):
    """In lower case, with the brackets of an IPv6 address."""
    assert host_name(header) == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("allowed_hosts", "http://images.example"),
        ("allowed_hosts", "images.example:80"),
        ("allowed_hosts", " , "),
        ("cors_origins", "images.example"),
        ("cors_origins", "https://images.example/page"),
        ("cors_origins", ","),
        ("trusted_proxies", "proxy.example"),
        ("trusted_proxies", "10.0.0.1/8"),
        ("trusted_proxies", " "),
        ("root_path", "tools"),
        ("root_path", "/tools//x"),
        ("root_path", "/v1"),
        ("root_path", "/status/x"),
        ("root_path", "/tools/.."),
        ("max_connections", 0),
        ("ssl_certfile", "/nowhere"),
    ],
)
def test_what_would_never_match_is_refused(name, value):
    """At the start, with the name of the setting."""
    with pytest.raises(ValidationError, match=name):
        Settings(**{name: value})


# Origins

PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}


def test_without_origins_no_page_elsewhere_reads_anything(ask):
    """As it always was."""
    asked = {"origin": "https://page.example"}
    answers = ask(("GET", "/v1/variants", asked), ("OPTIONS", "/v1/upscale", {**asked, **PREFLIGHT}))
    assert not any("access-control-allow-origin" in answer.headers for answer in answers)


def test_named_origins_may_call(ask):
    """A preflight allows the key; images, errors and failures carry the headers, and what they say may be read."""
    page = {"origin": "https://page.example"}
    requests = (
        ("OPTIONS", "/v1/upscale", {**page, **PREFLIGHT}),
        ("POST", "/v1/upscale", {**page, **PNG}),
        ("GET", "/v1/variants/nope", page),
        ("GET", "/nowhere", {**page, "host": "rebound.example"}),
    )
    preflight, *others = ask(*requests, cors_origins="https://page.example/")
    assert preflight.status_code == 200
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    assert [answer.status_code for answer in others] == [200, 404, 421]
    for answer in (preflight, *others):
        assert answer.headers["access-control-allow-origin"] == "https://page.example"
        assert answer.headers["x-request-id"]
    for answer in others:
        exposed = answer.headers["access-control-expose-headers"].lower()
        for name in ("x-request-id", "x-swin2sr-notice", "x-swin2sr-steps", "retry-after", "server-timing"):
            assert name in exposed


def test_other_origins_may_not(ask):
    """They get no header, and their preflight is refused with a problem document."""
    other = {"origin": "https://other.example"}
    plain, preflight = ask(
        ("GET", "/v1/variants", other),
        ("OPTIONS", "/v1/upscale", {**other, **PREFLIGHT}),
        cors_origins="https://page.example",
    )
    assert "access-control-allow-origin" not in {**plain.headers, **preflight.headers}
    assert preflight.status_code == 400
    assert preflight.headers["content-type"] == "application/problem+json"
    assert "SWIN2SR_CORS_ORIGINS" in preflight.json()["detail"]


def test_a_preflight_is_no_request_for_an_image(ask):
    """It is not counted as one."""
    headers = {"origin": "https://page.example", **PREFLIGHT}
    *_, metrics = ask(("OPTIONS", "/v1/upscale", headers), ("GET", "/metrics", {}), cors_origins="*")
    assert "swin2sr_requests_total{" not in metrics.text
    assert "swin2sr_inflight_requests 0.0" in metrics.text


# Proxies


@pytest.mark.parametrize(
    ("peer", "trusted", "forwarded", "client"),
    [
        ("127.0.0.1", "", "203.0.113.9", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("::ffff:10.1.1.1", "10.0.0.0/8", "203.0.113.9", "203.0.113.9"),
        ("::ffff:10.1.1.1", "", "203.0.113.9", "10.1.1.1"),
        ("10.1.1.1", "127.0.0.1", "203.0.113.9", "10.1.1.1"),
        ("10.1.1.1", "10.0.0.0/8", "1.1.1.1, 203.0.113.9, 10.2.2.2", "203.0.113.9"),
        ("10.1.1.1", "10.0.0.0/8", "<script>", ""),
    ],
)
def test_the_clients_address_is_in_the_log(ask, caplog, *, peer, trusted, forwarded, client):
    """``X-Forwarded-For`` counts from trusted proxies only, and then the last address that is not one of theirs."""
    caplog.set_level(logging.INFO, "app.access")
    ask(("GET", "/v1/variants", {"x-forwarded-for": forwarded}), peer=peer, trusted_proxies=trusted)
    assert [line["client"] for line in lines(caplog)] == [client]


def servers(answer):
    return [each["url"] for each in answer.json().get("servers", [])]


def test_a_trusted_prefix_counts_for_one_request(ask):
    """openapi.json names it as its server; the next request without it, or from elsewhere, does not."""
    prefixed, plain, odd = ask(
        ("GET", "/openapi.json", {"x-forwarded-prefix": "/tools/upscaler/"}),
        ("GET", "/openapi.json", {}),
        ("GET", "/openapi.json", {"x-forwarded-prefix": "//evil.example"}),
        trusted_proxies="127.0.0.1",
    )
    assert (servers(prefixed), servers(plain), servers(odd)) == (["/tools/upscaler"], [], [])
    (untrusted,) = ask(("GET", "/openapi.json", {"x-forwarded-prefix": "/tools/upscaler"}))
    assert servers(untrusted) == []


def test_of_two_prefixes_the_proxys_counts(ask):
    """The client's is in front of it, if the proxy adds its own."""
    sent = [("x-forwarded-prefix", "/forged"), ("x-forwarded-prefix", "/tools")]
    (document,) = ask(("GET", "/openapi.json", sent), trusted_proxies="127.0.0.1")
    assert servers(document) == ["/tools"]


@pytest.mark.parametrize("prefix", ["/v1", "/health/x", "/..", "/a/../b", "/a//b", "javascript:x"])
def test_a_prefix_that_would_hide_paths_is_ignored(ask, prefix):
    """A path of the service, or one that leads elsewhere, also from a trusted proxy."""
    sent = {"x-forwarded-prefix": prefix}
    document, variants = ask(("GET", "/openapi.json", sent), ("GET", "/v1/variants", sent), trusted_proxies="127.0.0.1")
    assert servers(document) == []
    assert variants.status_code == 200


@pytest.mark.parametrize("prefix", ["/tools/upscaler", ""])
def test_paths_answer_with_the_prefix_and_without_it(ask, caplog, prefix):
    """Page, documents, API, metrics and probes; an image is counted as one either way."""
    caplog.set_level(logging.INFO, "app.access")
    paths = ("/", "/docs", "/web/page.js", "/openapi.json", "/v1/variants", "/health/live", "/metrics")
    requests = [("GET", prefix + path, {}) for path in paths]
    requests += [("POST", prefix + "/v1/upscale", PNG), ("GET", "/metrics", {})]
    answers = ask(*requests, root_path="/tools/upscaler/")
    assert {answer.status_code for answer in answers} == {200}
    assert servers(answers[3]) == ["/tools/upscaler"]
    assert 'outcome="ok",variant="lightweight-x2"} 1.0' in answers[-1].text
    assert not any("health" in line["message"] for line in lines(caplog)), "probes are not logged"


def test_the_prefix_alone_leads_to_the_page(ask):
    """Its relative links need the slash."""
    (answer,) = ask(("GET", "/tools/upscaler", {}), root_path="/tools/upscaler")
    assert answer.status_code in (307, 308)
    assert answer.headers["location"].endswith("/tools/upscaler/")


# Keys


def test_the_name_of_a_key_is_logged_and_the_key_is_not(ask, caplog, tmp_path):
    """In the log and in the metrics; the admin token and wrong keys have no label of their own."""
    caplog.set_level(logging.INFO)
    path = tmp_path / "keys"
    path.write_text("ann:hush-hush-ann\nhush-hush-ben\n")
    tokens = ("hush-hush-ann", "hush-hush-ben", "hush-hush-admin", "wrong-wrong", "hush-hush-ann")
    requests = [("POST", "/v1/upscale", {**PNG, "authorization": f"Bearer {token}"}) for token in tokens]
    *answers, metrics = ask(*requests, ("GET", "/metrics", {}), api_keys_file=path, admin_token="hush-hush-admin")
    assert [answer.status_code for answer in answers] == [200, 200, 200, 401, 200]
    assert [line.get("key") for line in lines(caplog) if "upscale" in line["message"]] == [
        "ann",
        "key-1",
        "(admin)",
        None,
        "ann",
    ]
    counted = [line for line in metrics.text.splitlines() if line.startswith("swin2sr_requests_total")]
    assert counted == [
        'swin2sr_requests_total{key="ann",outcome="ok",variant="lightweight-x2"} 2.0',
        'swin2sr_requests_total{key="key-1",outcome="ok",variant="lightweight-x2"} 1.0',
        'swin2sr_requests_total{key="",outcome="ok",variant="lightweight-x2"} 1.0',
        'swin2sr_requests_total{key="",outcome="unauthorized",variant=""} 1.0',
    ]
    assert "hush" not in caplog.text + metrics.text


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong-wrong"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": "Bearer user-key"}, 401),
        ({"authorization": "Bearer metrics-token"}, 200),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_metrics_may_need_a_token(ask, sent, status, method):
    """Because they carry the names of keys. A user's key does not open them."""
    (answer,) = ask((method, "/metrics", sent), metrics_token="metrics-token", api_keys="user-key")
    assert answer.status_code == status


# HEAD, traces, and bounded answers


@pytest.mark.parametrize("settings", [{}, {"root_path": "/tools"}])
def test_options_of_the_whole_server(tmp_path, settings):
    """The methods that it supports, without a body; a foreign host is refused."""
    app = scripted_app(tmp_path, settings, lightweight_x2=ScriptedUpscaler())

    async def exchange(host):
        request = Connection(b"", {"host": host})
        request.scope.update(method="OPTIONS", path="*", raw_path=b"*")
        await app(request.scope, request.receive, request.send)
        return request.status, bytes(request.body), dict(request.headers).get(b"allow")

    assert asyncio.run(exchange("localhost")) == (204, b"", b"GET, HEAD, POST, OPTIONS")
    assert asyncio.run(exchange("rebound.example"))[0] == 421


def test_head_answers_wherever_get_does(ask):
    """The same status and headers, no body; where GET is not allowed, neither is HEAD."""
    paths = (
        "/",
        "/docs",
        "/openapi.json",
        "/metrics",
        "/health/live",
        "/health/startup",
        "/v1/variants",
        "/v1/variants/x2",
    )
    paths += ("/v1/variants/nope", "/nowhere", "/v1/upscale")
    got = ask(*(("GET", path, {}) for path in paths))
    headed = ask(*(("HEAD", path, {}) for path in paths))
    assert [each.status_code for each in headed] == [each.status_code for each in got]
    assert [each.status_code for each in got] == [200] * 8 + [404, 404, 405]
    for path, one, other in zip(paths, got, headed, strict=True):
        assert other.content == b"", path
        assert other.headers["content-type"] == one.headers["content-type"]
        if path not in ("/metrics", "/health/live", "/nowhere", "/v1/upscale", "/v1/variants/nope"):
            assert other.headers["content-length"] == str(len(one.content))


def test_a_wrong_method_names_both_right_ones(ask):
    """HEAD is allowed beside GET."""
    (answer,) = ask(("POST", "/v1/variants", {}))
    assert answer.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("sent", "trace"),
    [
        (f"00-{TRACE}-00f067aa0ba902b7-01", TRACE),
        (f"cc-{TRACE}-00f067aa0ba902b7-01-later", TRACE),
        (f"ff-{TRACE}-00f067aa0ba902b7-01", None),
        (f"00-{TRACE}-00f067aa0ba902b7-01-later", None),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-00f067aa0ba902b7-01", None),
        ("nonsense", None),
    ],
)
def test_a_trace_goes_through(ask, caplog, sent, trace):
    """The caller's trace id is in the log line and in problem documents; a malformed header is ignored."""
    caplog.set_level(logging.INFO, "app.access")
    (answer,) = ask(("GET", "/v1/variants/nope", {"traceparent": sent}))
    assert answer.json().get("trace_id") == trace
    assert [line.get("trace_id") for line in lines(caplog)] == [trace]


def test_an_answer_to_nonsense_stays_small(ask):
    """However many options there are that do not exist, and however long their names are."""
    many = "&".join(f"a{number}=1" for number in range(6000))
    for query in (many, "b" * 50_000 + "=1", "quality=" + "9" * 50_000, "variant=" + "v" * 50_000):
        (answer,) = ask(("POST", f"/v1/upscale?{query}", PNG))
        assert answer.status_code in (404, 422)
        assert len(answer.content) < 16_384
