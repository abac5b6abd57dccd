"""The emulator as a process: the line, signals, exit codes, TLS, leaving with its parent."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import openai
import pytest
import trustme

from profiler.emulator.process import start_emulator
from profiler.errors import TargetError, UsageError

COMMAND = [sys.executable, "-m", "profiler.emulator", "--port", "0", "--scenario", "instant"]


def launch(*more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_line_then_silence_and_a_clean_end(number: signal.Signals) -> None:
    with launch() as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("emulator listening on http://127.0.0.1:")
        url = line.split()[-1]
        assert httpx.get(f"{url}/healthz", timeout=60).text == "ok\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, "", "")


def test_requests_in_flight_do_not_hold_up_the_end(tmp_path: Path) -> None:
    process = start_emulator("cities")
    host, port = process.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(b"GET /tools/weather?city=Oslo HTTP/1.1\r\nhost: x\r\n\r\n")
        assert process.stop() == 0
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""


def test_it_leaves_when_its_standard_input_ends() -> None:
    with launch("--exit-with-parent") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("emulator listening on ")
        out, err = process.communicate(timeout=60)  # closes standard input
        assert (process.returncode, out, err) == (0, "", "")


def test_a_port_in_use_and_a_bad_scenario_are_one_line_and_exit_code_2(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run([*COMMAND, "--port", str(port)], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"profiler emulate: cannot listen on 127.0.0.1:{port}: Address already in use\n"
        with pytest.raises(
            UsageError, match=rf"did not start: cannot listen on 127\.0\.0\.1:{port}: Address"
        ):
            start_emulator("instant", port=port)
    bad = tmp_path / "bad.toml"
    bad.write_text("descripton = 'x'")
    with pytest.raises(UsageError, match=r"unknown key 'descripton' \(did you mean 'description'\?\)"):
        start_emulator(str(bad))
    with pytest.raises(UsageError, match="--tls-cert and --tls-key belong together"):
        start_emulator("instant", tls_cert=tmp_path / "x.pem")


def test_no_word_in_time_is_an_error() -> None:
    with pytest.raises(TargetError, match=r"the emulator did not start: no word within 0 s"):
        start_emulator("instant", timeout=0.0)


async def test_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1", "localhost")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    server.cert_chain_pems[0].write_to_path(certificate)
    server.private_key_pem.write_to_path(key)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with start_emulator("instant", tls_cert=certificate, tls_key=key) as emulator:
        assert emulator.url.startswith("https://127.0.0.1:")
        http = openai.DefaultAsyncHttpxClient(verify=context)
        async with openai.AsyncOpenAI(base_url=f"{emulator.url}/v1", api_key="x", http_client=http) as client:

            async def one() -> str:
                stream = await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "x"}], stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            answers = await asyncio.gather(*(one() for _ in range(10)))
        assert set(answers) == {"There was nothing to look up, so this is the answer."}


async def test_hundreds_of_streams_at_once_and_clients_that_vanish() -> None:
    body = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}]}'
    request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )
    with start_emulator("cities") as emulator:
        host, port = emulator.url.removeprefix("http://").split(":")

        async def stream(leave: bool) -> bytes:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(request)
            data = await (reader.read(10) if leave else reader.readuntil(b"0\r\n\r\n"))
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            return data

        results = await asyncio.gather(*(stream(n % 3 == 0) for n in range(300)))
        whole = [data for data in results if len(data) > 10]
        assert len(whole) == 200
        assert all(b"data: [DONE]" in data for data in whole)
        async with httpx.AsyncClient(base_url=emulator.url, timeout=60) as client, asyncio.timeout(60):
            while (stats := (await client.get("/emulator/stats")).json())["in_flight"]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert stats["peak_in_flight"]["chat"] > 150


def test_it_says_when_other_machines_can_reach_it() -> None:
    """The address is all that is looked at; nothing but this machine asks."""
    for host, said in (("127.0.0.1", ""), ("0.0.0.0", "other machines can reach it, without a key")):
        command = [sys.executable, "-m", "profiler", "emulate", "--host", host, "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(f"emulator listening on http://{host}:")
            process.terminate()
            _, complained = process.communicate(timeout=60)
        assert said in complained
        assert len(complained.splitlines()) == bool(said)


def test_other_names_are_let_in_by_allow_host() -> None:
    """The address of the listener stays loopback; the name is only what a client says it asked."""
    command = [sys.executable, "-m", "profiler", "emulate", "--port", "0", "--scenario", "instant"]
    given = ["--allow-host", "loadtest", "--allow-host", "gateway"]
    with subprocess.Popen([*command, *given], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        statuses = {
            name: httpx.get(f"{url}/emulator/journal", headers={"host": name}, timeout=60).status_code
            for name in ("loadtest:8100", "gateway", "evil.example")
        }
        process.terminate()
        process.communicate(timeout=60)
    assert statuses == {"loadtest:8100": 200, "gateway": 200, "evil.example": 403}


def test_a_host_that_is_none_is_wrong_usage() -> None:
    command = [sys.executable, "-m", "profiler", "emulate", "--port", "0", "--allow-host", "http://loadtest"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--allow-host 'http://loadtest' is not a host: give a name or an address alone" in done.stderr
    assert len(done.stderr.splitlines()) == 1
