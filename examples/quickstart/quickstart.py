# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""An agent of three calls that the server schedules as one program."""

import os
from typing import Any

from openai import OpenAI

from vllm_program_sched.client import instrument, program

URL = os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1")
KEY = os.environ.get("OPENAI_API_KEY", "none")


def main() -> None:
    """Ask three questions; each one builds on the answers before it."""
    client = instrument(OpenAI(base_url=URL, api_key=KEY))
    model = client.models.list().data[0].id
    messages: list[Any] = []
    with program("trip-planner"):
        for question in (
            "Name a city.",
            "What is it known for?",
            "How do I get there?",
        ):
            messages.append({"role": "user", "content": question})
            answer = client.chat.completions.create(
                model=model, messages=messages, max_tokens=40
            )
            text = answer.choices[0].message.content or ""
            messages.append({"role": "assistant", "content": text})
            print(f"> {question}\n{text}\n")


if __name__ == "__main__":
    main()
