"""What is taken for a key, what is not, and how long looking for it takes."""

from __future__ import annotations

import random
import time

import pytest

from profiler.redaction.keys import hide_keys

HIDDEN = {
    # By name, in URLs.
    "GET https://h/v1?api_key=abc&n=1": "GET https://h/v1?api_key=[redacted]&n=1",
    "https://h/?api-key=abc": "https://h/?api-key=[redacted]",
    "https://h/?a=1&key=abc#top": "https://h/?a=1&key=[redacted]#top",
    "https://h/?APIKEY=abc": "https://h/?APIKEY=[redacted]",
    "https://h/cb#access_token=abc&token_type=bearer": "https://h/cb#access_token=[redacted]&token_type=bearer",
    "https://h/cb?code=a1b2&state=7": "https://h/cb?code=[redacted]&state=7",
    "https://h/c?sv=2020&sig=ab%2Bc%3D&se=2": "https://h/c?sv=2020&sig=[redacted]&se=2",
    "https://h/o?X-Amz-Date=2024&X-Amz-Credential=AKIA%2F1&X-Amz-Signature=ab12&X-Amz-Security-Token=IQ": (
        "https://h/o?X-Amz-Date=2024&X-Amz-Credential=[redacted]&X-Amz-Signature=[redacted]"
        "&X-Amz-Security-Token=[redacted]"
    ),
    "https://h/o?X-Goog-Signature=ab": "https://h/o?X-Goog-Signature=[redacted]",
    "https://h/?a=1&amp;password=x": "https://h/?a=1&amp;password=[redacted]",
    r"https://h/?a=1\u0026client_secret=x": r"https://h/?a=1\u0026client_secret=[redacted]",
    "/?next=https%3A%2F%2Fh%3Fapi%5Fkey%3Dabc%26b%3D2&x=1": (
        "/?next=https%3A%2F%2Fh%3Fapi%5Fkey%3D[redacted]%26b%3D2&x=1"
    ),
    # By place.
    "postgres://user:p@ss@host/db": "postgres://[redacted]@host/db",
    "/?u=https%3A%2F%2Fuser%3Apass%40host%2F": "/?u=https%3A%2F%2F[redacted]%40host%2F",
    # By name, in headers, JSON and variables.
    "x-api-key: 0a1b2c3d": "x-api-key: [redacted]",
    "x-goog-api-key:a1b2c3d4": "x-goog-api-key:[redacted]",
    "Ocp-Apim-Subscription-Key: 0123abcd": "Ocp-Apim-Subscription-Key: [redacted]",
    "{'api-key': 'abcdefgh', 'n': 1}": "{'api-key': '[redacted]', 'n': 1}",
    '{"headers": {"X-Api-Key": "abcdefgh"}}': '{"headers": {"X-Api-Key": "[redacted]"}}',
    r'"{\"token\": \"abcdefgh\"}"': r'"{\"token\": \"[redacted]\"}"',
    "[(b'x-api-key', b'abc-123'), (b'a', b'b')]": "[(b'x-api-key', b'[redacted]'), (b'a', b'b')]",
    "OPENAI_API_KEY=abcdefgh is wrong": "OPENAI_API_KEY=[redacted] is wrong",
    'password="two words", user': 'password="[redacted]", user',
    "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY": "aws_secret_access_key = [redacted]",
    '"SecretAccessKey": "wJalrXUtnFEMI/K7MDENG"': '"SecretAccessKey": "[redacted]"',
    "AccountKey=abcd1234==;EndpointSuffix=x": "AccountKey=[redacted]",
    "token=abc123, retry": "token=[redacted], retry",
    "Authorization: Bearer abcdefgh": "Authorization: Bearer [redacted]",
    "authorization: Basic dXNlcjpwYXNz": "authorization: Basic [redacted]",
    "Authorization: token abc123def": "Authorization: token [redacted]",
    "Proxy-Authorization: a1b2c3d4": "Proxy-Authorization: [redacted]",
    "Authorization: a1b2c3d4 is wrong": "Authorization: [redacted] is wrong",
    '{"Authorization":"Bearer abc.def","n":1}': '{"Authorization":"Bearer [redacted]","n":1}',
    "the header 'Basic Zm9vOmJhcg==' is": "the header 'Basic [redacted]' is",
    'Authorization: Digest username="u", response="r"': "Authorization: Digest [redacted]",
    "Authorization: AWS4-HMAC-SHA256 Credential=AKIA/2024, SignedHeaders=host, Signature=ab": (
        "Authorization: AWS4-HMAC-SHA256 [redacted]"
    ),
    "Cookie: a=b; c=d": "Cookie: [redacted]",
    "{'set-cookie': 'sid=a; Path=/', 'n': 1}": "{'set-cookie': '[redacted]', 'n': 1}",
    # By their beginnings.
    "key provided: sk-proj-abc12345.": "key provided: [redacted].",
    "sk-ant-api03-abc, sk-or-v1-abc, sk-abcdefgh": "[redacted], [redacted], [redacted]",
    "sk-proj-********abcd": "[redacted]",
    "AKIAIOSFODNN7EXAMPLE and ASIAIOSFODNN7EXAMPLE": "[redacted] and [redacted]",
    "AIzaSyA1234567890abcdefghijklmnopqrstuvw": "[redacted]",
    "ya29.a0AfH6SMBabcdefgh-_x": "[redacted]",
    "ghp_abcdefghijklmnopqrstuvwxyz0123456789": "[redacted]",
    "gho_abcdefghijkl1234 ghu_abcdefghijkl1234 ghs_abcdefghijkl1234 ghr_abcdefghijkl1234": " ".join(
        ["[redacted]"] * 4
    ),
    "github_pat_11ABCDEFG0abcdefgh_ijkl": "[redacted]",
    "glpat-abcdefgh12345678wxyz": "[redacted]",
    "hf_abcdefghijKLMNOPqrst": "[redacted]",
    "gsk_abcdefghijKLMNOPqrst": "[redacted]",
    "xai-abcdefghijKLMNOPqrst": "[redacted]",
    "r8_abcdefghijKLMNOPqrst": "[redacted]",
    "xoxb-1234-5678-abcdef xoxp-1234-5678-abcdef xoxa-1234-5678-abcdef": " ".join(["[redacted]"] * 3),
    "sk_live_abcdefgh12345678": "[redacted]",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc_def-1. Then": "[redacted]. Then",
    "x\n-----BEGIN RSA PRIVATE KEY-----\nMIIE-x\n-----END RSA PRIVATE KEY-----\ny": "x\n[redacted]\ny",
    r"-----BEGIN PRIVATE KEY-----\nMIIE": "[redacted]",
    r"first\nsk-proj-abc12345": r"first\n[redacted]",
    "x%3Dsk-proj-abc12345": "x%3D[redacted]",
    "İ sk-proj-abc12345 x-api-key: 0a1b2c3d": "İ [redacted] x-api-key: [redacted]",
}

READABLE = [
    "max_tokens=4096 tokens=12345678 prompt_tokens: 12345678 token_count=1234567",
    "time to first token: 0.512345 s; token=1234567",
    "Unexpected token: identifier",
    "Basic authentication is off; bearer token missing; Authorization: required here",
    'WWW-Authenticate: Bearer realm="x", error="invalid_token"',
    "Authorization: Bearer realm=here",
    "set-cookie: not allowed",
    "models sk-large, sk-large-v2, task-sequential, risk-averse, disk-usage-report",
    "hf_transformers, gsk_model, r8_x, eyJust.a.word",
    "call_abcDEF123456789 req_011CSHoEeqs5C35K2UUqR7Fy chatcmpl-9xYzABCDEF123 msg_01AbCdEfGh",
    "550e8400-e29b-41d4-a716-446655440000 d41d8cd98f00b204e9800998ecf8427e",
    "/home/somebody/runs/20260101-120000/records.jsonl",
    "invalid params: 'api_key', 'base_url'",
    '{"type": "object", "properties": {"token": {"type": "string"}, "key": "abcdefgh"}}',
    '{"error": {"code": "invalid_api_key", "param": "api_key", "message": "no token"}}',
    "error_code=rate_limit_exceeded status code=404",
    "sort_key=created_at primary-key: id_123456 signature=abcdefgh",
    "api key: invalid; the secret: expired; password: required; api_key=None",
    "rate:500/min,burst=10+tokens:30000/min semaphore:search=2,get_weather=4",
    "--header api-key=… x-api-key: [redacted] ?key=[redacted]&n=1 Bearer [redacted]",
    "http://127.0.0.1:8100/v1 and somebody@example.com",
    "http://127.0.0.1:8100/v1?api-version=2024-10-21&limit=5",
]

HOSTILE = [
    *("a", "sk-", "eyJ", "eyJaaaaa.", "://", "://a", "%3A%2F%2Fa", "token", "token=", 'token="', "token:'"),
    *(
        "key\t=\t",
        "api_key",
        "cookie: a=",
        'cookie: a="',
        "Bearer ",
        "bearer realm=",
        "authorization:a ",
        "&",
    ),
    *("&a", "&token", "-----BEGIN ", "-----BEGIN PRIVATE KEY-----", "Digest a=", "%26", "[redacted]", "ghp_"),
    *("%25", "SG.", "\\n", '"', "@", "aws4-", "x-amz-signature", "İ"),
]


@pytest.mark.parametrize(("text", "shown"), HIDDEN.items())
def test_keys_are_hidden_and_what_is_around_them_stays(text: str, shown: str) -> None:
    assert hide_keys(text) == shown
    assert hide_keys(shown) == shown


@pytest.mark.parametrize("text", READABLE)
def test_what_is_no_key_stays_readable(text: str) -> None:
    assert hide_keys(text) == text


def test_time_grows_with_the_length_of_a_hostile_text_alone() -> None:
    """Eight times the length takes some eight times as long; with a pattern that goes back it would be 64."""

    def seconds(units: list[str], length: int) -> float:
        text = "".join(random.Random(7).choices(units, k=length))[:length]
        began = time.process_time()
        hide_keys(text)
        return time.process_time() - began

    draw = random.Random(5)
    mixtures = [[one] for one in HOSTILE] + [draw.sample(HOSTILE, 3) for _ in range(10)]
    for units in mixtures:
        short = max(min(seconds(units, 4_000) for _ in range(2)), 1e-3)
        assert seconds(units, 32_000) / short < 30, units
