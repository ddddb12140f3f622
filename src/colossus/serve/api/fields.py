"""What the bodies of several paths have in common: how answers are drawn, where they end, which form they take."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from colossus.serve.api.errors import MARK, ApiError

TEXT, LIST, OBJECT = MARK + "text", MARK + "list", MARK + "object"


class Body(BaseModel):
    """Types are taken as they are sent ("1" is no number); fields that nobody here knows are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())


def refused(words: str, *, but: tuple[Any, ...] = ()) -> BeforeValidator:
    """For a field that OpenAI or vLLM has, that we do not, and whose silence would change what is meant; ``but`` values mean nothing."""

    def check(value: Any) -> None:
        if value is not None and value not in but:
            raise ValueError(words)

    return BeforeValidator(check)


def by_kind(value: Any) -> str:
    """Which branch of text | list | object a value is meant for."""
    return LIST if isinstance(value, list) else OBJECT if isinstance(value, dict) else TEXT


TokenId = Annotated[int, Field(ge=0, lt=2**31)]
StopText = Annotated[str, Field(min_length=1, max_length=256)]
TextOrTexts = Annotated[
    Annotated[StopText, Tag(TEXT)] | Annotated[list[StopText], Tag(LIST), Field(max_length=16)],
    Discriminator(lambda value: LIST if isinstance(value, list) else TEXT),
]


LogitBias = Annotated[dict[Annotated[str, Field(pattern="^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]], Field(max_length=300)]


class StreamOptions(Body):
    include_usage: bool | None = None


class JsonSchema(Body):
    """A named JSON schema; ``strict`` says no more than what holds anyhow: the answer follows it."""

    name: Annotated[str, Field(max_length=64)] = "answer"
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _check(self) -> ResponseFormat:
        if self.type == "json_schema" and (self.json_schema is None or self.json_schema.schema_ is None):
            raise ValueError("type 'json_schema' needs json_schema.schema")
        return self


Schema = Annotated[Annotated[str, Tag(TEXT)] | Annotated[dict[str, Any], Tag(OBJECT)], Discriminator(lambda value: OBJECT if isinstance(value, dict) else TEXT)]
Choices = Annotated[list[Annotated[str, Field(min_length=1, max_length=4096)]], Field(min_length=1, max_length=1000)]


class StructuredOutputs(Body):
    """vLLM's way to ask for a form: just one of these."""

    json_: Schema | None = Field(None, alias="json")
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: Annotated[None, refused("is not offered: use grammar")] = None


class Drawing(Body):
    """How answers are drawn and where they end; the same for chat and completions. What is not given keeps OpenAI's default."""

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    logit_bias: LogitBias | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: TextOrTexts | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=16)] | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    cache_salt: Annotated[str, Field(max_length=256)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
    best_of: Annotated[None, refused("is not offered: ask for n answers and choose among them", but=(1,))] = None
    use_beam_search: Annotated[None, refused("is not offered: answers are drawn one token at a time", but=(False,))] = None
    length_penalty: Annotated[None, refused("is not offered: it belongs to beam search", but=(1,))] = None
    bad_words: Annotated[None, refused("is not offered: use logit_bias", but=([],))] = None
    allowed_token_ids: Annotated[None, refused("is not offered: use logit_bias or a grammar")] = None
    truncate_prompt_tokens: Annotated[None, refused("is not offered: shorten the prompt")] = None
    prompt_logprobs: Annotated[None, refused("is not offered: use /v1/completions with echo and logprobs")] = None
    logits_processors: Annotated[None, refused("is not offered: the server runs no code of its callers", but=([],))] = None

    @model_validator(mode="after")
    def _check(self) -> Drawing:
        if self.stream_options is not None and not self.stream:
            raise ApiError("stream_options is only for stream = true", param="stream_options")
        return self

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)
