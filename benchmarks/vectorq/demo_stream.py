# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What the demo asks: messages to the support desk of an online shop.

The model turns each message into the title of a ticket. Twelve wishes come in eight
phrasings each, and some messages come twice, as they do at a real desk. Nothing here
says which titles are right: an answer is right if it is the model's own.
"""

from __future__ import annotations

import random
from typing import Any

from benchmarks.program_sched.server import SERVED_NAME

# A title is one line; an answer that is cut off is not kept by the cache.
_STOP = "\n"
_MAX_TOKENS = 24

_SYSTEM = (
    "Shorten the customer's message to a title for the ticket: two or three words that "
    "say what it is about, and nothing else."
)
# About other things than the messages below.
_EXAMPLES: tuple[tuple[str, str], ...] = (
    ("How do I update my phone number?", "update phone number"),
    ("Can you tell me the size of your boxes?", "box size"),
    ("Please send me a receipt.", "send receipt"),
    ("Transfer 5 euros to my account.", "transfer 5 euros to account"),
    ("Can I borrow a ladder?", "borrow ladder"),
    ("Is it possible to pause my subscription?", "pause subscription"),
    ("The bag that I got is torn.", "bag torn"),
    ("Is it possible to add a second user?", "add user"),
    ("Where is my coat?", "find coat"),
    ("Which languages do you speak?", "languages"),
    ("I would like to rent a car from you.", "rent car"),
    ("What do I have to do to renew my contract?", "renew contract"),
    ("Could I meet a doctor, please?", "meet doctor"),
    ("I would like to know when the concert starts.", "concert start"),
    ("Please return €75 to my account.", "return 75 euros to account"),
    ("Where can I see the prices of your tickets?", "ticket prices"),
    ("I want my name to be changed.", "change name"),
    ("Please tell me how to book a room.", "book room"),
    ("What are the visiting hours of the hospital?", "visiting hours"),
    ("Can I still move my appointment?", "move appointment"),
    ("Do you rent bicycles?", "rent bicycle"),
)

PHRASINGS: dict[str, tuple[str, ...]] = {
    "reset password": (
        "How do I reset my password?",
        "How can I reset my password?",
        "I need to reset my password, how does it work?",
        "What do I have to do to reset my password?",
        "Please help me reset my password.",
        "Where can I reset the password of my account?",
        "Can I reset my password somewhere?",
        "I have forgotten my password, how do I reset it?",
    ),
    "track parcel": (
        "How do I track my parcel?",
        "How can I track my parcel?",
        "I want to track my parcel.",
        "Where can I track my parcel?",
        "Can I track my parcel?",
        "Please tell me how to track my parcel.",
        "What do I have to do to track my parcel?",
        "I would like to track the parcel I am waiting for.",
    ),
    "cancel order": (
        "How do I cancel my order?",
        "How can I cancel my order?",
        "I want to cancel my order.",
        "Please cancel my order.",
        "Can I still cancel my order?",
        "What is the way to cancel an order?",
        "I would like to cancel the order I placed.",
        "Is it possible to cancel my order?",
    ),
    "use voucher": (
        "How do I use my voucher?",
        "How can I use my voucher?",
        "Where can I use my voucher?",
        "I want to use my voucher.",
        "I would like to use a voucher.",
        "Please tell me how to use my voucher.",
        "What do I have to do to use a voucher?",
        "I have a voucher, how do I use it?",
    ),
    "change address": (
        "How do I change my address?",
        "How can I change my address?",
        "I want to change my address.",
        "Please change my address.",
        "Can I change my address?",
        "Where do I change my address?",
        "I need to change my address.",
        "Is it possible to change my address?",
    ),
    "download invoice": (
        "How do I download my invoice?",
        "How can I download my invoice?",
        "Where can I download my invoice?",
        "I want to download my invoice.",
        "Can I download my invoice?",
        "I would like to download the invoice.",
        "Please tell me how to download my invoice.",
        "Is it possible to download my invoice?",
    ),
    "return item": (
        "How do I return an item?",
        "How can I return an item?",
        "I want to return an item.",
        "What do I have to do to return an item?",
        "I would like to return an item I bought.",
        "Can I return an item?",
        "Please tell me how to return an item.",
        "Is it possible to return an item?",
    ),
    "delete account": (
        "How do I delete my account?",
        "How can I delete my account?",
        "I want to delete my account.",
        "Please delete my account.",
        "Can you delete my account?",
        "Where can I delete my account?",
        "I would like my account to be deleted.",
        "What do I have to do to delete my account?",
    ),
    "payment methods": (
        "Which payment methods do you accept?",
        "What payment methods do you accept?",
        "Which payment methods are accepted?",
        "What methods of payment can I use?",
        "Which payment methods can I use?",
        "Can you tell me which payment methods you accept?",
        "I would like to know which payment methods you accept.",
        "What are the payment methods in your shop?",
    ),
    "gift card": (
        "How can I buy a gift card?",
        "Can I buy a gift card?",
        "Where can I buy a gift card?",
        "How do I buy a gift card?",
        "I want to buy a gift card.",
        "I would like to buy a gift card from you.",
        "Is it possible to buy a gift card?",
        "Are there gift cards that I can buy?",
    ),
    "speak to person": (
        "Can I speak to a person?",
        "Could I speak to a person?",
        "I want to speak to a person.",
        "Please let me speak to a person.",
        "How can I speak to a person?",
        "I would like to speak to a real person.",
        "Is it possible to speak to a person?",
        "May I speak to a person, please?",
    ),
    "report damage": (
        "My item arrived damaged.",
        "The item arrived damaged.",
        "My item was damaged when it arrived.",
        "The item that I got is damaged.",
        "I received a damaged item.",
        "The item was damaged when I received it.",
        "What I ordered arrived damaged.",
        "I got my item and it is damaged.",
    ),
}
# One wish in two phrasings, and another wish that looks more like the first one.
REFUND = "Refund 20 euros to my card"
REFUND_REPHRASED = "Please refund €20 to my card"
REFUND_CHANGED = "Refund 200 euros to my card"


def stream(seed: int, repeats: int = 10) -> list[str]:
    """Return all messages in random order.

    Args:
        seed: Of the order.
        repeats: Messages that come a second time in the same words.
    """
    order = random.Random(seed)
    messages = [text for texts in PHRASINGS.values() for text in texts]
    order.shuffle(messages)
    for _ in range(repeats):
        again = order.choice(messages[: len(messages) // 2])
        # Behind the first time that it is asked.
        messages.insert(order.randrange(len(messages) // 2, len(messages)), again)
    return [REFUND, *messages]


def request_of(message: str, *, cached: bool = True) -> dict[str, Any]:
    """Return the body of a chat completion request.

    Args:
        message: What the customer writes.
        cached: Whether the cache may be used.
    """
    turns = [{"role": "system", "content": _SYSTEM}]
    for example, title in _EXAMPLES:
        turns.append({"role": "user", "content": example})
        turns.append({"role": "assistant", "content": title})
    turns.append({"role": "user", "content": message})
    body: dict[str, Any] = {
        "model": SERVED_NAME,
        "messages": turns,
        "temperature": 0.0,
        "max_tokens": _MAX_TOKENS,
        "stop": [_STOP],
    }
    if not cached:
        body["vllm_xargs"] = {"vectorq_mode": "off"}
    return body
