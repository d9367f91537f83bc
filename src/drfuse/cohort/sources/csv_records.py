"""Finds where the records of a block of CSV end, and which need no parsing, in compiled code."""

from collections.abc import Callable, Sequence
from pickle import UnpicklingError
from typing import Any, Literal, NamedTuple, TypeVar, cast, get_args

import numba
import numpy as np
from numba.core.caching import NullCache
from numpy.typing import NDArray

from drfuse.cohort.sources.mimic_iv import FIRST_YEAR, LAST_YEAR

Bytes = NDArray[np.uint8]
Cell = Literal["unread", "text", "integer", "number", "time"]
"""What the cells of a column are read as; `unread` cells are not parsed."""

Fault = Literal["none", "not closed", "records in it", "wrong number of cells"]
"""What is wrong with a quoted cell that has line breaks in it; the last describes its whole record."""

_COMMA, _QUOTE, _LINE_FEED, _RETURN, _SPACE, _MINUS, _POINT, _COLON, _ZERO, _NINE = b',"\n\r -.:09'
_PLUS, _SMALL_E, _LARGE_E, _SMALL_N, _LARGE_N, _SPOILT = b"+eEnN!"
_ASCII = 128
_STOPS = np.array([byte in (_COMMA, _LINE_FEED, _QUOTE, _RETURN) or byte >= _ASCII for byte in range(256)])
_TEXT, _INTEGER, _NUMBER, _TIME = (get_args(Cell).index(cell) for cell in get_args(Cell)[1:])
_NO_FAULT, _NOT_CLOSED, _RECORDS_IN_IT, _WRONG_NUMBER = range(len(get_args(Fault)))
_TIME_LENGTH = 19
_LONGEST_LINE = 2_000_000  # bytes; DuckDB rejects longer ones
_FEWEST_CELLS = 3  # of a line in a quoted cell that is taken for a record
_LONGEST_INTEGER, _LONGEST_NUMBER = 18, 15  # characters that fit an int64 and a float64 for certain

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Result = TypeVar("_Result")
_KERNELS: list[Any] = []


def _compiled(function: _Function) -> _Function:
    """Compile a function; the result is kept on disk where numba finds a place to write."""
    try:
        kernel = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:
        kernel = numba.njit(nogil=True)(function)
    _KERNELS.append(kernel)
    return cast(_Function, kernel)


def _call(kernel: Callable[..., _Result], *arguments: Any) -> _Result:
    """Return a compiled function's result; if numba cannot read or write its files, do without them."""
    try:
        return kernel(*arguments)
    except (OSError, EOFError, UnpicklingError):
        for one in _KERNELS:
            one._cache = NullCache()
        return kernel(*arguments)


class Selection(NamedTuple):
    """What `select_records` found in a block.

    Attributes:
        records: The records to parse, each ended by a line feed.
        n_records: How many records the block has; blank lines count.
        fault: What is wrong with the first quoted cell that cannot be right.
        fault_at: The place of that cell's quote in the block.
    """

    records: Bytes
    n_records: int
    fault: Fault
    fault_at: int


def whole_records(block: Bytes) -> int:
    """Return how many bytes of a block, which begins with a record, belong to records that end in it.

    A line break in a quoted cell does not end a record. A quote is text unless it is the first character
    of its cell.
    """
    end = _end_of_records if _call(_count, block, _QUOTE) else _after_last_line_feed
    return int(_call(end, block))


def count_lines(block: Bytes) -> int:
    """Return the number of line feeds in a block."""
    return int(_call(_count, block, _LINE_FEED))


def select_records(
    block: Bytes, cells: Sequence[Cell], column: int = -1, wanted: Sequence[int] = ()
) -> Selection:
    """Return the records of a block that have to be parsed.

    Drops a record only if its integer in one column is not wanted and its cells are certain to parse, so that
    the parser still counts every record that does not. An integer with a fraction, which the parser would
    round, and a time outside of the years `FIRST_YEAR` to `LAST_YEAR` get an exclamation mark in place of
    their first character, so that the parser rejects them.

    Args:
        block: Whole records.
        cells: What the cells of each column are read as.
        column: The place of the column that decides; -1 keeps all records.
        wanted: The integers that are wanted there, from 0.
    """
    kinds = np.array([get_args(Cell).index(cell) for cell in cells], np.int8)
    is_wanted = np.zeros(max(wanted, default=0) + 1, np.bool_)
    is_wanted[list(wanted)] = True
    kept = np.empty(len(block) + 1, np.uint8)
    n_bytes, n_records, fault, place = _call(_select, block, kinds, column, is_wanted, kept)
    return Selection(kept[:n_bytes].copy(), n_records, get_args(Fault)[fault], place)


@_compiled
def _count(block: Bytes, byte: int) -> int:
    n = 0
    for k in range(block.size):
        n += block[k] == byte
    return n


@_compiled
def _after_last_line_feed(block: Bytes) -> int:
    place = block.size
    while place > 0 and block[place - 1] != _LINE_FEED:
        place -= 1
    return place


@_compiled
def _end_of_records(block: Bytes) -> int:
    end = 0
    while True:
        place = end
        while place < block.size and block[place] != _LINE_FEED and block[place] != _QUOTE:
            place += 1
        quoted = place < block.size and block[place] == _QUOTE
        place += 1
        if quoted:
            place, fault, _ = _scan_record(block, end, 0)
            if fault == _NOT_CLOSED:
                return end
        if place > block.size or block[place - 1] != _LINE_FEED:
            return end
        end = place


@_compiled
def _begins_alike(block: Bytes, record: int, line: int) -> bool:
    """Return whether a line begins with digits, a comma and no space, or the record itself does not."""
    has_id = False
    for start in (record, line):
        place = start
        while place < block.size and _ZERO <= block[place] <= _NINE:
            place += 1
        has_id = place > start and place + 1 < block.size and block[place] == _COMMA
        has_id = has_id and block[place + 1] != _SPACE
        if start == record and not has_id:
            return True
    return has_id


@_compiled
def _scan_record(  # noqa: PLR0912 - a state machine
    block: Bytes, start: int, n_cells: int
) -> tuple[int, int, int]:
    """Return where a record with quotes ends, the fault of a quoted cell in it, and where that cell opens.

    Spaces around a quoted cell are allowed. If `n_cells` is 0, only a quote that is not closed is a fault.
    """
    place, cell, opened, closed, at_start = start, 1, -1, False, True
    several_lines, first_opened, fault = False, -1, _NO_FAULT
    commas, line = 0, -1  # of the line within a quoted cell
    while place < block.size:
        byte = block[place]
        if opened >= 0:  # in a quoted cell
            if byte == _QUOTE:
                if place + 1 < block.size and block[place + 1] == _QUOTE:
                    place += 1
                else:
                    if line >= 0:
                        several_lines, first_opened = True, opened if first_opened < 0 else first_opened
                        is_record = cell >= _FEWEST_CELLS and commas == cell - 1
                        if is_record and fault == _NO_FAULT and _begins_alike(block, start, line):
                            fault = _RECORDS_IN_IT
                    opened, closed, line = -1, True, -1
            elif byte == _COMMA:
                commas += 1
            elif byte == _LINE_FEED:
                is_record = line >= 0 and n_cells >= _FEWEST_CELLS and commas == n_cells - 1
                if is_record and fault == _NO_FAULT and _begins_alike(block, start, line):
                    fault, first_opened = _RECORDS_IN_IT, opened
                commas, line = 0, place + 1
        elif byte == _COMMA:
            cell, at_start, closed = cell + 1, True, False
        elif byte == _LINE_FEED:
            place += 1
            break
        elif byte == _QUOTE and at_start:
            opened, at_start, commas, line = place, False, 0, -1
        elif byte != _SPACE:
            at_start = False
            if closed and byte != _RETURN and several_lines and fault == _NO_FAULT:
                fault = _WRONG_NUMBER  # text after the closing quote
        place += 1
    if opened >= 0:
        return place, _NOT_CLOSED, opened
    if several_lines and fault == _NO_FAULT and cell != n_cells:
        fault = _WRONG_NUMBER
    return place, fault if n_cells > 0 else _NO_FAULT, first_opened


@_compiled
def _is_time(block: Bytes, place: int) -> bool:
    """Return whether a time such as 2180-07-23 12:36:00 begins here; the 31st is left to the parser."""
    digits, year = True, 0
    for k in range(4):
        year = 10 * year + block[place + k] - _ZERO
    for k in (0, 1, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18):
        digits &= _ZERO <= block[place + k] <= _NINE
    month = 10 * (block[place + 5] - _ZERO) + block[place + 6] - _ZERO
    day = 10 * (block[place + 8] - _ZERO) + block[place + 9] - _ZERO
    hour = 10 * (block[place + 11] - _ZERO) + block[place + 12] - _ZERO
    return (
        digits
        and block[place + 4] == _MINUS
        and block[place + 7] == _MINUS
        and block[place + 10] == _SPACE
        and block[place + 13] == _COLON
        and block[place + 16] == _COLON
        and FIRST_YEAR <= year <= LAST_YEAR
        and 1 <= month <= 12
        and 1 <= day <= (28 if month == 2 else 30)
        and hour < 24
        and block[place + 14] < _ZERO + 6
        and block[place + 17] < _ZERO + 6
    )


@_compiled
def _is_end(block: Bytes, place: int) -> bool:
    """Return whether a cell ends here, spaces aside."""
    while block[place] == _SPACE:
        place += 1
    return block[place] in (_COMMA, _QUOTE, _LINE_FEED, _RETURN)


@_compiled
def _is_not_whole(block: Bytes, place: int) -> bool:
    """Return whether a number begins here that is not a whole one, such as 12.5; 12.0 and 3e7 are whole."""
    if block[place] == _MINUS or block[place] == _PLUS:
        place += 1
    if not (_ZERO <= block[place] <= _NINE or block[place] == _POINT):
        return False  # the parser rejects it, or takes it for a missing one
    n_decimals, exponent = 0, 0
    while _ZERO <= block[place] <= _NINE:
        place += 1
    if block[place] == _POINT:
        place += 1
        first = place
        while _ZERO <= block[place] <= _NINE:
            place += 1
            n_decimals = place - first if block[place - 1] != _ZERO else n_decimals
    if block[place] == _SMALL_E or block[place] == _LARGE_E:
        place += 1
        if block[place] == _PLUS:
            place += 1
        while _ZERO <= block[place] <= _NINE and exponent < _LONGEST_INTEGER:
            exponent = 10 * exponent + block[place] - _ZERO
            place += 1
    return n_decimals > exponent or not _is_end(block, place)


@_compiled
def _is_out_of_range(block: Bytes, place: int) -> bool:
    """Return whether a time begins here whose year is not from `FIRST_YEAR` to `LAST_YEAR`."""
    if _is_end(block, place) or block[place] == _SMALL_N or block[place] == _LARGE_N:  # missing, or NaN
        return False
    year, n_digits = 0, 0
    while _ZERO <= block[place + n_digits] <= _NINE and n_digits < _LONGEST_INTEGER:
        year = 10 * year + block[place + n_digits] - _ZERO
        n_digits += 1
    return n_digits != 4 or not FIRST_YEAR <= year <= LAST_YEAR


@_compiled
def _misread_cell(block: Bytes, start: int, end: int, cells: NDArray[np.int8]) -> int:
    """Return where a cell of a record begins that the parser would misread; -1 if there is none."""
    place, cell = start, 0
    while place < end and cell < cells.size:
        while block[place] == _SPACE:
            place += 1
        quoted = block[place] == _QUOTE
        place += quoted
        while block[place] == _SPACE:
            place += 1
        is_number, is_time = cells[cell] == _INTEGER, cells[cell] == _TIME
        if (is_number and _is_not_whole(block, place)) or (is_time and _is_out_of_range(block, place)):
            return int(place)
        while place < end and (quoted or block[place] != _COMMA):
            quoted ^= block[place] == _QUOTE
            place += 1
        place += 1
        cell += 1
    return -1


@_compiled
def _select(  # noqa: PLR0912, PLR0915 - one pass over the bytes
    block: Bytes, cells: NDArray[np.int8], column: int, is_wanted: NDArray[np.bool_], kept: Bytes
) -> tuple[int, int, int, int]:
    """Copy the records to parse to `kept`; return their bytes, the number of all records, and a fault.

    The loops rely on the line feed at the block's end.
    """
    place, n_bytes, n_records = 0, 0, 0
    while place < block.size:
        start, cell, wanted, misread = place, 0, column < 0, -1
        while True:
            begin, kind, usual = place, cells[cell], True
            if kind == _TIME:
                if place + _TIME_LENGTH < block.size and _is_time(block, place):
                    place += _TIME_LENGTH
            elif kind == _INTEGER:
                number = 0
                while _ZERO <= block[place] <= _NINE:
                    number = 10 * number + block[place] - _ZERO
                    place += 1
                usual = place - begin <= _LONGEST_INTEGER
                if cell == column:
                    wanted = usual and place > begin and number < is_wanted.size and is_wanted[number]
            elif kind == _NUMBER:
                place += block[place] == _MINUS
                digits = place
                while _ZERO <= block[place] <= _NINE:
                    place += 1
                usual = place > digits or place == begin
                if place > digits and block[place] == _POINT:
                    place += 1
                    while _ZERO <= block[place] <= _NINE:
                        place += 1
                usual &= place - begin <= _LONGEST_NUMBER
            else:
                while not _STOPS[block[place]]:
                    place += 1
                if block[place] == _QUOTE and place == begin:
                    place += 1
                    while (
                        not _STOPS[block[place]]
                        or block[place] == _COMMA
                        or (block[place] == _QUOTE and block[place + 1] == _QUOTE)
                    ):
                        place += 1 + (block[place] == _QUOTE)
                    usual = block[place] == _QUOTE
                    place += usual
            if usual and block[place] == _COMMA and cell + 1 < cells.size:
                cell += 1
                place += 1
                continue
            place += block[place] == _RETURN
            usual &= block[place] == _LINE_FEED and cell + 1 == cells.size
            break
        if usual:
            place += 1
        else:
            wanted = True
            place, fault, fault_at = _scan_record(block, start, cells.size)
            if fault != _NO_FAULT:
                return n_bytes, n_records, fault, fault_at
            misread = _misread_cell(block, start, place, cells)
        n_records += 1
        if wanted or place - start > _LONGEST_LINE:
            end = place - 1
            end -= end > start and block[end - 1] == _RETURN
            kept[n_bytes : n_bytes + end - start] = block[start:end]
            if misread >= 0:
                kept[n_bytes + misread - start] = _SPOILT
            n_bytes += end - start
            kept[n_bytes] = _LINE_FEED
            n_bytes += 1
    return n_bytes, n_records, _NO_FAULT, -1
