"""What a client may send to `/v1/segment`, as multipart form or as JSON, and the sentences that say what is wrong."""

from __future__ import annotations

import base64
from typing import Any

from pydantic import Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from maskformer.serving.predictor import Options


class JsonRequest(Options):
    """A picture in base64, with options."""

    image: str = Field(min_length=1, json_schema_extra={"format": "base64-picture", "contentEncoding": "base64"})


def request_body() -> dict[str, Any]:
    """The two forms of a request, for the OpenAPI document."""
    form = Options.model_json_schema()
    # A field of a form has no null: what is not wanted is not sent.
    fields = {name: _without_null(field) for name, field in form["properties"].items()}
    picture = {"type": "string", "format": "binary", "description": "The picture file."}
    del form["if"], form["then"]  # what a task has no use for: tools that test forms cannot read conditions in them
    form |= {"properties": {"image": picture, **fields}, "required": ["image"], "title": "FormRequest"}
    return {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": form},
            "application/json": {"schema": JsonRequest.model_json_schema()},
        },
    }


def _without_null(field: dict[str, Any]) -> dict[str, Any]:
    kept = [each for each in field.get("anyOf", ()) if each != {"type": "null"}]
    rest = {name: value for name, value in field.items() if name not in ("anyOf", "default")}
    return rest | (kept[0] if kept else {})


async def read_request(request: Request) -> tuple[bytes, Options]:
    """The picture file and the options.

    Raises:
        HTTPException: with 415 for another type of body, 400 for one that cannot be taken apart, 422 for what is in it.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "application/json":
        return _of_json(await request.body())
    if kind == "multipart/form-data":
        return await _of_form(request)
    raise HTTPException(415, f"content-type is {kind or 'missing'!r}, expected multipart/form-data or application/json")


def _of_json(body: bytes) -> tuple[bytes, Options]:
    try:
        asked = JsonRequest.model_validate_json(body, strict=True)
        content = base64.b64decode(asked.image, validate=True)
    except ValidationError as error:
        raise HTTPException(422, _sentence_of(error)) from error
    except ValueError as error:
        sentence = f"image is not base64 ({error}): send the file's bytes in base64, without a prefix"
        raise HTTPException(422, sentence) from error
    return content, Options(**asked.model_dump(exclude={"image"}))


async def _of_form(request: Request) -> tuple[bytes, Options]:
    fields: dict[str, str] = {}
    content: bytes | None = None
    # Starlette answers 400 to a form that cannot be taken apart.
    async with request.form(max_files=1, max_fields=len(Options.model_fields)) as form:
        for name, value in form.multi_items():
            if name in fields or (name == "image" and content is not None):
                raise HTTPException(422, f"the form has {name[:40]!r} twice, expected it once")
            if name == "image":
                if not isinstance(value, UploadFile):
                    raise HTTPException(422, "image is a text field, expected a file: give its part a filename")
                content = await value.read()
            elif isinstance(value, UploadFile):
                raise HTTPException(422, f"{name[:40]!r} is a file, expected only image to be one")
            else:
                fields[name] = value
    if not content:
        raise HTTPException(422, "the form has no image: send the picture file in a part of that name")
    try:
        return content, Options.model_validate_strings(fields)
    except ValidationError as error:
        raise HTTPException(422, _sentence_of(error)) from error


def _sentence_of(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part)[:40] for part in first["loc"])
    return f"{where or 'the body'}: {first['msg']}"
