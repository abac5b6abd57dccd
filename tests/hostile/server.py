"""A model server that nobody can trust: good replies, and between them every kind of bad one, seeded.

It speaks Chat Completions, Responses and Messages, streamed and whole, over bare sockets.
`python -m tests.hostile.server SEED [SHARE]` prints its port and serves until its standard input closes;
`SHARE` of its replies are bad. Which kinds the requests of each loop got is in `GET /journal`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys

from tests.hostile.grammar import ENDLESS, KINDS, Request, Writer, encoded_bomb, encodings


class HostileServer:
    """`share` of the replies are bad; which, follows from the seed and the request alone."""

    def __init__(self, seed: int, share: float = 0.6, endless_share: float = 0.02) -> None:
        self.seed, self.share, self.endless_share = seed, share, endless_share
        self.journal: dict[str, list[str]] = {}
        self.kinds = [kind for kind in KINDS if kind not in ENDLESS]

    async def serve(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, path, _ = head[0].split(" ", 2)
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:])}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if method == "GET":
                    said = json.dumps(self.journal).encode()
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(said), said))
                elif not await self._reply(path, headers, body, writer):
                    break
        writer.close()

    async def _reply(self, path: str, headers: dict[str, str], body: bytes, writer: Writer) -> bool:
        """Reply to a request; whether the connection may be used again."""
        api = {"completions": "openai", "responses": "responses"}.get(
            path.partition("?")[0].rpartition("/")[2], "messages"
        )
        asked = json.loads(body or b"{}")
        streamed, number = bool(asked.get("stream")), headers.get("x-toolloop-loop", "?")
        told = self.journal.setdefault(f"{api} {'streamed' if streamed else 'whole'} {number}", [])
        dice = random.Random(f"{self.seed}/{api}/{streamed}/{number}/{len(told)}")
        answered = sum(1 for kind in told if kind == "good")
        calls = 0 if answered else dice.randrange(1, 4)
        request = Request(api, streamed, len(told), calls, dice)
        drawn = dice.random()
        if drawn < self.endless_share:
            kind = dice.choice(sorted(ENDLESS))
        elif drawn < self.share:
            kind = dice.choice(self.kinds)
        else:
            told.append("good")
            writer.write(request.framed(request.body()))
            await writer.drain()
            return True
        told.append(kind)
        async for piece in KINDS[kind](request, writer):
            for start in range(0, len(piece), 65536):  # of a bomb, nobody reads much
                writer.write(piece[start : start + 65536])
                await writer.drain()
        return False


async def main(seed: int, share: float) -> None:
    for encoding in encodings():
        encoded_bomb(encoding)  # before anybody waits for it
    server = await asyncio.start_server(HostileServer(seed, share).serve, "127.0.0.1", 0, limit=2**22)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.6))
