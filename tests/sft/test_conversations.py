"""SFT on conversations of several turns with tools: what the loss is of, turn by turn, and which rows are refused."""

import copy
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_supervised import TINY, TOKENIZER

from pipelines import paths
from pipelines.config.training import SftStage
from pipelines.errors import UserError
from pipelines.models.loading import save_policy
from pipelines.models.tiny import tiny_model
from pipelines.progress import Journal
from pipelines.sft import conversations
from pipelines.sft.conversations import Renderer
from pipelines.stages import Context, sft

HERMES = (
    "{%- if tools -%}<|system|>{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|end|>{%- endif -%}"
    "{%- for m in messages -%}"
    "<|{{ m.role }}|>"
    "{{ m.content }}"
    "{%- for call in m.tool_calls or [] -%}<tool_call>{{ call.function | tojson }}</tool_call>{%- endfor -%}"
    "<|end|>{{ '\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)
"""Shows tools and calls; each turn ends in a line break that no policy writes."""
CUTTING = HERMES.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] if not loop.last and m.role == 'assistant' else m.content }}")
"""Leaves out what an earlier turn thought."""
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 3}'}}
TALK = {
    "messages": [
        {"role": "user", "content": "What is 2 + 3?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "5"},
        {"role": "assistant", "content": "It is 5."},
    ],
    "tools": TOOLS,
}


def tokenizer(template: str = HERMES):
    other = copy.deepcopy(TOKENIZER)
    other.chat_template = template
    return other


def read(tmp_path: Path, *rows: object) -> list[conversations.Conversation]:
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return conversations.read(path)


def said(tmp_path: Path, row: dict, template: str = HERMES, roles=("assistant",)) -> list[tuple[str, list[tuple[str, float]]]]:
    """For each example its text, and what of it the loss is of with its weight."""
    (talk,) = read(tmp_path, row)
    found = Renderer(tokenizer(template), roles).examples(talk)
    return [(TOKENIZER.decode(e.ids), [(TOKENIZER.decode(e.ids[begin:end]), weight) for begin, end, weight in e.spans]) for e in found]


def test_the_loss_is_of_what_the_assistant_says_up_to_the_end_of_its_turn(tmp_path: Path) -> None:
    ((text, spans),) = said(tmp_path, TALK)
    call = '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call><|end|>'
    assert spans == [(call, 1.0), ("It is 5.<|end|>", 1.0)]
    shown = json.dumps(TOOLS[0])
    assert text == f"<|system|>{shown}<|end|><|user|>What is 2 + 3?<|end|>\n<|assistant|>{call}\n<|tool|>5<|end|>\n<|assistant|>It is 5.<|end|>"


def test_turns_are_tokenised_as_a_policy_is_asked_them(tmp_path: Path) -> None:
    (talk,) = read(tmp_path, TALK)
    (example,) = Renderer(tokenizer(), ("assistant",)).examples(talk)
    begin, _, _ = example.spans[0]
    asked = tokenizer().apply_chat_template(talk.messages[:1], tools=TOOLS, tokenize=False, add_generation_prompt=True)
    assert example.ids[:begin] == TOKENIZER(asked, add_special_tokens=False)["input_ids"]
    assert [TOKENIZER.eos_token_id] * 2 == [example.ids[end - 1] for _, end, _ in example.spans]


def test_chosen_roles_and_weights(tmp_path: Path) -> None:
    ((_, spans),) = said(tmp_path, TALK, roles=("assistant", "tool"))
    assert [text for text, _ in spans][1] == "<|tool|>5<|end|>\n"
    weighed = copy.deepcopy(TALK) | {"weight": 2}
    weighed["messages"][1]["weight"] = 0
    weighed["messages"][3]["weight"] = 0.25
    assert said(tmp_path, weighed)[0][1] == [("It is 5.<|end|>", 0.5)]


def test_where_a_template_rewrites_earlier_turns_each_is_an_example_of_its_own(tmp_path: Path) -> None:
    talk = {
        "messages": [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "<think> hm </think>1"},
            {"role": "user", "content": "two"},
            {"role": "assistant", "content": "<think> so </think>2"},
        ]
    }
    start = "<|user|>one<|end|>\n<|assistant|>"
    first, second = "<think> hm </think>1<|end|>", "<think> so </think>2<|end|>"
    assert said(tmp_path, talk, CUTTING) == [
        (start + first, [(first, 1.0)]),
        (f"{start}1<|end|>\n<|user|>two<|end|>\n<|assistant|>{second}", [(second, 1.0)]),
    ]
    assert len(said(tmp_path, talk)) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", r"talks.jsonl:2: not JSON"),
        ([1], r"talks.jsonl:2: expected an object, got list"),
        ({"messages": [{"role": "user", "content": "a"}]}, r"talks.jsonl:2: messages: List should have at least 2 items"),
        ({"messages": [{"role": "user", "content": "a"}] * 2}, r"talks.jsonl:2: no message is the assistant's"),
        ({"messages": [{"role": "bot", "content": "a"}] * 2}, r"talks.jsonl:2: messages.0.role: Input should be 'assistant', 'tool'"),
        ({"messages": [{"role": "assistant", "content": 3}] * 2}, r"talks.jsonl:2: messages.0.content: Input should be a valid string"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}] * 2},
            r"talks.jsonl:2: messages.0.tool_calls.0.function.arguments: are no JSON",
        ),
        ({**TALK, "tools": [{"function": "add"}]}, r"talks.jsonl:2: tools: a tool has no name: \{'function': 'add'\}"),
        ({**TALK, "weight": -1}, r"talks.jsonl:2: weight: Input should be greater than or equal to 0"),
    ],
)
def test_a_row_that_is_no_conversation_is_named(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, TALK, row)


@pytest.mark.parametrize(
    ("row", "template", "message"),
    [
        ({"messages": TALK["messages"]}, HERMES.replace("tool_calls", "calls"), "drops calls of tools or their results, here 'add'"),
        (TALK, HERMES.replace("{{ tool | tojson }}", "a tool"), "does not show tools, here 'add'"),
        (TALK, HERMES.replace("<|end|>{{", "{{"), r"does not end the assistant's turns with the end token <\|end\|>"),
        (TALK, HERMES + "{{ raise_exception('no tools here') if tools }}", "cannot express conversation [0-9a-f]{16}: no tools here"),
        (
            {"messages": [{"role": "user", "content": "a<|end|><|assistant|>b"}, {"role": "assistant", "content": "c"}]}, HERMES,
            r"holds <\|end\|>, which frames turns",
        ),
    ],
)  # fmt: skip
def test_what_a_template_cannot_express_is_refused(tmp_path: Path, row: dict, template: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        said(tmp_path, row, template)


def test_parquet_says_the_same_as_json(tmp_path: Path) -> None:
    (expected,) = read(tmp_path, TALK)
    row = copy.deepcopy(TALK)
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "talks.parquet")
    assert conversations.holds(tmp_path / "talks.parquet") and conversations.read(tmp_path / "talks.parquet") == [expected]
    (tmp_path / "problems.jsonl").write_text('{"prompt": "1 + 1", "answer": "2"}\n')
    assert not conversations.holds(tmp_path / "problems.jsonl")


def test_a_stage_trains_on_them_and_writes_down_which(tmp_path: Path) -> None:
    save_policy(tmp_path / paths.model("base"), tiny_model(TINY, TOKENIZER, 1), tokenizer())
    (tmp_path / "talks.jsonl").write_text(json.dumps(TALK))
    given = {"init": "base", "data": "talks.jsonl", "train": {"batch_size": 1, "max_tokens": 256}}

    def run(**changes: object) -> dict[str, float]:
        settings = SftStage.model_validate({**given, **changes})
        return sft.run(Context("talk", tmp_path, 1, settings, tmp_path / "w", Journal(tmp_path / "w" / "j", "talk"), on_change="discard"))

    assert run()["examples"] == 1
    (seen,) = pq.read_table(tmp_path / paths.seen("talk")).to_pylist()
    assert seen == {"problem_id": conversations.read(tmp_path / "talks.jsonl")[0].of, "data": "talks.jsonl"}
    with pytest.raises(UserError, match="talk: data: talks.jsonl holds conversations, which take neither where nor share"):
        run(data={"talks.jsonl": {"where": {"domain": ["math"]}}})
    with pytest.raises(UserError, match="talk: no example to train on: there are 1, all longer than 20 tokens"):
        run(train={"max_tokens": 20})
