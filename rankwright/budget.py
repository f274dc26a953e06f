"""What reads cost at most, and whether the limits that the user set allow the next of them.

Arithmetic alone: the ledger says what was spent, training says which questions come next (`Ahead`). A bound is never
below what is paid for them, unless a call has to be sent again after an attempt that was billed (docs/costs.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from rankwright.algorithms.config import at_least, require
from rankwright.errors import StorageError
from rankwright.llms.calls import Prices, price_decimals, price_text
from rankwright.types import Context, Document, Example

if TYPE_CHECKING:
    from rankwright.llms.cache import LedgerTotals

FREE = Prices(0.0, 0.0)
"""What reads on this machine cost."""


@dataclass(frozen=True)
class BudgetConfig:
    """Limits of a run, over all its sessions; they may change from one to the next."""

    reader_calls: int = 0
    """Reader calls that the run may make, with those of dev, comparison and query expansion; 0 sets no limit."""
    cost: float = 0.0
    """What these calls may cost, in the currency of the prices, which must be known; 0 sets no limit."""
    hours: float = 0.0
    """Hours that training may take, without the comparison after it; 0 sets no limit."""

    def __post_init__(self) -> None:
        require(
            "budget.",
            self,
            {
                "reader_calls": at_least(0, self.reader_calls),
                "cost": at_least(0, self.cost),
                "hours": at_least(0, self.hours),
            },
        )


@dataclass(frozen=True)
class Ahead:
    """What a training does before it can next be stopped."""

    examples: Sequence[Example]
    """Questions of the next rollout."""
    evaluations: int
    """Evaluations on dev that come with it."""
    seconds: float = 0.0
    """Training time so far, over all sessions of the run."""


@dataclass(frozen=True)
class Bill:
    """Upper bounds of what some reads come to."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int | None = 0
    """None where nothing limits the length of an answer."""

    def __add__(self, other: Bill) -> Bill:
        both = (self.output_tokens, other.output_tokens)
        output = None if None in both else sum(tokens or 0 for tokens in both)
        return Bill(self.calls + other.calls, self.input_tokens + other.input_tokens, output)


def total(bills: Iterable[Bill]) -> Bill:
    """Their sum."""
    return sum(bills, Bill())


class Costs:
    """What the parts of a run cost at most, whatever the cache already has.

    Args:
        tokens_of: input tokens of one read, at most.
        output_tokens: of one answer, at most; None where nothing limits them.
        reads_per_question: of the algorithm, by the number of candidates.
        train_k: passages of its longest read.
        train: questions of training.
        dev, test: questions that a reader answers; none without a reader.
        top_k: passages that it sees of them.
        orders: rankings of the comparison, each of which may put other passages first.
    """

    def __init__(
        self,
        tokens_of: Callable[[Context], int],
        output_tokens: int | None,
        reads_per_question: Callable[[int], int],
        train_k: int,
        train: Sequence[Example],
        dev: Sequence[Example],
        test: Sequence[Example],
        top_k: int,
        orders: int,
    ) -> None:
        self._tokens_of = tokens_of
        self._output_tokens = output_tokens
        self._reads_per_question = reads_per_question
        self._train_k = train_k
        self._train = train
        self._dev = dev
        self._test = test
        self._top_k = top_k
        self._orders = orders
        self._longest: dict[tuple[int, int], int] = {}

    def training(self, examples: Iterable[Example]) -> Bill:
        """One visit of each of the questions."""
        return total(self.reads(e, self._reads_per_question(len(e.candidates)), self._train_k) for e in examples)

    def ahead(self, ahead: Ahead) -> Bill:
        """All until training can next be stopped."""
        return total([self.training(ahead.examples), *[self.evaluation] * ahead.evaluations])

    @cached_property
    def evaluation(self) -> Bill:
        """One evaluation on dev: a read of each question."""
        return total(self.reads(example, 1, self._top_k) for example in self._dev)

    @cached_property
    def comparison(self) -> Bill:
        """All rankings of the test questions; those that put the same passages first share a read."""
        return total(self.reads(example, self._different(example), self._top_k) for example in self._test)

    @cached_property
    def longest_read(self) -> Bill:
        """One read, the longest of all."""
        sides = ((self._train, self._train_k), (self._dev, self._top_k), (self._test, self._top_k))
        bills = [self.reads(example, 1, k) for examples, k in sides for example in examples]
        return max(bills, key=lambda bill: bill.input_tokens, default=Bill())

    def _different(self, example: Example) -> int:
        count = len(example.candidates)
        return min(self._orders, math.perm(count, min(self._top_k, count)))

    def read(self, context: Context) -> Bill:
        """One read of its own."""
        return Bill(1, self._tokens_of(context), self._output_tokens)

    def reads(self, example: Example, calls: int, k: int) -> Bill:
        """So many reads of one question with at most k of its passages."""
        if not calls:
            return Bill()
        output = None if self._output_tokens is None else calls * self._output_tokens
        return Bill(calls, calls * self._longest_read(example, k), output)

    def _longest_read(self, example: Example, k: int) -> int:
        """Tokens of the longest read; a reader that cuts may leave fewer of many passages than of one."""
        key = (id(example), k)  # of dev or test another question may have the same query_id
        if key not in self._longest:

            def tokens(documents: Sequence[Document]) -> int:
                return self._tokens_of(Context(example.query, tuple(documents)))

            longest = sorted(example.candidates, key=lambda document: -tokens([document]))[:k]
            self._longest[key] = max(tokens(longest[:n]) for n in range(len(longest) + 1))
        return self._longest[key]


class Budget:
    """Limits, held against what was spent and what comes next.

    Args:
        limits: the user's.
        costs: what comes next costs at most.
        prices: of the reader's tokens; None where they are not known.
        spent: sums of the run's ledger, over all its sessions.
        besides: calls and price of what else counts toward the limits (query expansion, beside the reader).
    """

    def __init__(
        self,
        limits: BudgetConfig,
        costs: Costs,
        prices: Prices | None,
        spent: Callable[[], LedgerTotals],
        besides: Callable[[], tuple[int, float]] = lambda: (0, 0.0),
    ) -> None:
        self.limits = limits
        self.costs = costs
        self._prices = prices
        self._spent = spent
        self._besides = besides
        self._calls_seen = 0

    def training(self, ahead: Ahead) -> str | None:
        """Why training may not go on to the end of its next rollout; None where it may."""
        limit = self.limits.hours
        if limit and ahead.seconds >= limit * 3600:
            return f"Training has taken {ahead.seconds / 3600:.3g} hours; wanted at most {limit:g} (--max-hours)."
        return self.refusal(self.costs.ahead(ahead), "the next step")

    def reads(self, contexts: Iterable[Context], what: str) -> str | None:
        """Why the reader may not be asked about these; None where it may."""
        return self.refusal(total(self.costs.read(context) for context in contexts), what)

    def refusal(self, bill: Bill, what: str) -> str | None:
        """Why reads of this bill may not be made, as a sentence with the limit that would do; None where they may.

        Args:
            bill: of what comes next.
            what: its name.

        Raises:
            StorageError: the ledger has lost calls that it had.
        """
        if not (self.limits.reader_calls or self.limits.cost) or not bill.calls:
            return None
        spent = self._spent()
        if spent.calls < self._calls_seen:
            raise StorageError(
                f"Ledger of the run had {self._calls_seen} calls and now has {spent.calls}; wanted all of them to keep "
                "the limits. Bring the file of the cache back, or go on with --resume and without limits."
            )
        self._calls_seen = spent.calls
        other_calls, other_price = self._besides()
        return self._too_many(spent, other_calls, bill, what) or self._too_dear(spent, other_price, bill, what)

    def _too_many(self, spent: LedgerTotals, other: int, bill: Bill, what: str) -> str | None:
        limit, wanted = self.limits.reader_calls, spent.calls + spent.damaged + other + bill.calls
        if not limit or wanted <= limit:
            return None
        besides = f" and {other} besides (query expansion)" if other else ""
        besides += f" and perhaps {spent.damaged} that are damaged rows of the ledger" if spent.damaged else ""
        return (
            f"The run has made {spent.calls} reader calls{besides} and {what} may make {bill.calls} more; wanted at "
            f"most {limit} in all (--max-reader-calls; {wanted} would do for that)."
        )

    def paid(self, spent: LedgerTotals) -> float:
        """Their price; an attempt of unknown price counts as the dearest there can be, and so does a damaged row."""
        unknown = spent.unpriced_attempts + spent.damaged
        if not unknown:
            return spent.known_price
        return spent.known_price + unknown * self._price(self.costs.longest_read, spent.highest_price)

    def _too_dear(self, spent: LedgerTotals, other: float, bill: Bill, what: str) -> str | None:
        limit = self.limits.cost
        if not limit:
            return None
        paid, unknown = self.paid(spent) + other, ""
        if unpriced := spent.unpriced_calls + spent.damaged:
            unknown = f" ({unpriced} calls of unknown price counted as the dearest there can be)"
        next_price = self._price(bill, spent.highest_price)
        if paid + next_price <= limit:
            return None
        return (
            f"The run has cost {price_text(paid)}{unknown} and {what} may cost {price_text(next_price)} more; wanted "
            f"at most {limit:g} in all (--max-cost; {_rounded_up(paid + next_price)} would do for that)."
        )

    def _price(self, bill: Bill, highest: float) -> float:
        """By its tokens, or by the dearest call so far where that is more: a server may add tokens of its own."""
        by_tokens = self._prices.of(bill.input_tokens, bill.output_tokens) if self._prices else None
        return max(math.inf if by_tokens is None else by_tokens, bill.calls * highest)


def _rounded_up(price: float) -> str:
    """With as many decimals as are shown, never less."""
    unit = 10 ** price_decimals(price)
    return price_text(math.ceil(price * unit) / unit) if price < math.inf else "more than can be said"
