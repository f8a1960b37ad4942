"""Messages on every topic that a running stack reads.

Knows topics and a bus. Does not know the stack's processes: whether they stand it is seen in what
arrives afterwards (`benchmarks.fuzz.good_inputs`).
"""

from __future__ import annotations

from itertools import count

from benchmarks.fuzz.cases import Tally
from benchmarks.fuzz.messages import MOST_MESSAGES, bad_messages, plain_messages
from streams.bus.contract import Bus, MessagesRejected, Outgoing
from streams.contract.topics import FEEDBACK, RESPONSES, topic_specs

NOT_READ = (RESPONSES, FEEDBACK)  # by a stack: they are for others
LARGE_BYTES, MOST_LARGE = 50_000, 40  # of each topic: a broker's disk is not what is tried


def fuzz_topics(bus: Bus, cases: int, seed: int) -> Tally:
    """Sends so many messages in all, to each topic as many."""
    tally = Tally("messages of every topic")
    producer = bus.producer()
    topics = [spec.name for spec in topic_specs(1) if spec.name not in NOT_READ]
    each = max(1, 2 * cases // (len(topics) * MOST_MESSAGES))  # half of the lists' largest size
    for topic in topics:
        large = count()

        def send(messages: list[Outgoing], large: count[int] = large) -> int:
            sent = [
                message
                for message in messages
                if len(message.value or b"") < LARGE_BYTES or next(large) < MOST_LARGE
            ]
            try:
                producer.send(sent)
            except MessagesRejected as error:  # larger than the broker takes
                return len(sent) - len(error.reasons)
            return len(sent)

        tally.cases += send(plain_messages(topic))
        tally.try_cases(topic, bad_messages(topic), send, each, seed)
    producer.close()
    return tally
