"""Ids that look like the providers' and name a place on the tape.

Pure. An id carries (loop, round, call) and a nonce, so that a follow-up request or a tool request
finds its place without the server remembering anything, and the same place run twice (two
strategies on one tape) still gets two ids. Multiplying by an odd constant modulo 2^138 spreads
the nonce over all digits; a fixed field tells ours from foreign ids.
"""

from __future__ import annotations

from typing import NamedTuple

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_VALUES = {digit: value for value, digit in enumerate(_DIGITS)}
_PAIRS = [first + second for first in _DIGITS for second in _DIGITS]
_EIGHT = 62**8
_LENGTH = 24  # base-62 digits; 62^24 > 2^138
_BITS = 138
_MASK = (1 << _BITS) - 1
_FACTOR = 0x2F0B4C4F17B3A64D2E1C3A9D5B7F4E6D1B5 | 1
_INVERSE = pow(_FACTOR, -1, 1 << _BITS)
_MARK = 0x2B5
# From the low end: nonce 40 bits, mark 10, call 12, round 12, loop 64.
_MARK_SHIFT, _CALL_SHIFT, _ROUND_SHIFT, _LOOP_SHIFT = 40, 50, 62, 74

MAX_LOOP = (1 << 64) - 1
"""The largest loop number an id can carry."""


class Place(NamedTuple):
    """A call's place on the tape."""

    loop: int
    round: int
    call: int


def encode(place: Place, nonce: int) -> str:
    """24 letters and digits; different for every nonce below 2^40."""
    loop, round_, call = place
    number = (
        (loop << _LOOP_SHIFT)
        | (round_ << _ROUND_SHIFT)
        | (call << _CALL_SHIFT)
        | (_MARK << _MARK_SHIFT)
        | (nonce & 0xFFFFFFFFFF)
    )
    number = (number * _FACTOR) & _MASK
    rest, low = divmod(number, _EIGHT)
    high, middle = divmod(rest, _EIGHT)
    return _word(low) + _word(middle) + _word(high)


def _word(word: int) -> str:
    """Eight digits; small numbers and no loop are what makes an id cheap."""
    pairs = _PAIRS
    return (
        f"{pairs[word % 3844]}{pairs[word // 3844 % 3844]}"
        f"{pairs[word // 14776336 % 3844]}{pairs[word // 56800235584]}"
    )


def decode(identifier: str) -> Place | None:
    """The place that an id names, with any prefix (`call_`, `toolu_`, ...); None for foreign ids."""
    digits = identifier[-_LENGTH:]
    if len(digits) < _LENGTH:
        return None
    number = 0
    try:
        for position in range(_LENGTH - 2, -1, -2):
            number = number * 3844 + _VALUES[digits[position]] * 62 + _VALUES[digits[position + 1]]
    except KeyError:
        return None
    if number > _MASK:
        return None
    number = (number * _INVERSE) & _MASK
    if (number >> _MARK_SHIFT) & 0x3FF != _MARK:
        return None
    return Place(number >> _LOOP_SHIFT, (number >> _ROUND_SHIFT) & 0xFFF, (number >> _CALL_SHIFT) & 0xFFF)
