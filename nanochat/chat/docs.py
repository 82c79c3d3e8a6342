"""The API's description as a page of plain HTML.

FastAPI's viewers load scripts from another site, which could read the conversations that the chat
page keeps in the browser; this page has no script.
"""

from html import escape

UNBOUNDED = 2**31  # a limit of that size is not worth mentioning


def docs_page(openapi: dict) -> str:
    """HTML of an OpenAPI document: addresses, the fields they take, the statuses they return."""
    schemas = openapi["components"]["schemas"]
    lines = [
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>nanochat API</title>',
        '<meta name="viewport" content="width=device-width">',
        '<link rel="stylesheet" href="docs.css">',
        '<h1>nanochat API</h1><p>As data: <a href="/openapi.json">/openapi.json</a></p>',
    ]
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            lines.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2>")
            lines.append(f"<p>{escape(operation['description'])}</p>")
            for content in operation.get("requestBody", {}).get("content", {}).values():
                schema = schemas[type_name(content["schema"])]
                lines.append("<table><tr><th>field<th>type<th>")
                for name, field in schema["properties"].items():
                    required = " (required)" if name in schema.get("required", ()) else ""
                    text = f"{escape(type_name(field))}{required}"
                    description = escape(field.get("description", ""))
                    lines.append(f"<tr><td><code>{name}</code><td>{text}<td>{description}")
                lines.append("</table>")
            for status, response in operation["responses"].items():
                lines.append(f"<p><b>{status}</b> {escape(response['description'])}</p>")
    return "\n".join(lines)


def type_name(schema: dict) -> str:
    """A field's type in a few words.

    Example: type_name({"type": "integer", "minimum": 1}) == "integer >= 1"
    """
    if "anyOf" in schema:
        kinds = [type_name(one) for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {type_name(schema['items'])}"
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [
        f" {sign} {schema[name]:g}"
        for name, sign in signs.items()
        if abs(schema.get(name, UNBOUNDED)) < UNBOUNDED
    ]
    return schema.get("type", "any") + "".join(limits)
