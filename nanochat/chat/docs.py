"""The API's description as a page of plain HTML: no script, nothing loaded from elsewhere.

The usual viewers come from another site, and their scripts could read the conversations that the
chat page keeps in the browser.
"""

from html import escape

HUGE = 2**31  # a bound that nobody needs to be told of
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100% } code { font-size: 0.95em }
td, th { text-align: left; vertical-align: top; padding: 0.25rem 0.75rem 0.25rem 0 }
tr + tr { border-top: 1px solid #8884 } :root { color-scheme: light dark }
"""


def docs_page(document: dict) -> str:
    """HTML of an OpenAPI document: addresses, the fields of what they take, and statuses."""
    schemas = document.get("components", {}).get("schemas", {})
    sections = [
        section(method, path, operation, schemas)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    title = escape(document["info"]["title"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{title} API</title>'
        f"<style>{STYLE}</style><h1>{title} API</h1>"
        f'<p>As data: <a href="/openapi.json">/openapi.json</a></p>{"".join(sections)}</html>'
    )


def section(method: str, path: str, operation: dict, schemas: dict) -> str:
    """One address."""
    parts = [f"<h2><code>{method.upper()} {escape(path)}</code></h2>"]
    parts.append(f"<p>{escape(operation.get('description', ''))}</p>")
    for content in operation.get("requestBody", {}).get("content", {}).values():
        name = content["schema"].get("$ref", "").rpartition("/")[2]
        parts.append(fields(schemas.get(name, {})))
    for status, response in operation.get("responses", {}).items():
        parts.append(f"<p><b>{escape(status)}</b> {escape(response.get('description', ''))}</p>")
    return "".join(parts)


def fields(schema: dict) -> str:
    """A table of an object's fields."""
    required = schema.get("required", ())
    rows = [
        f"<tr><td><code>{escape(name)}</code><td>{escape(kind(field))}"
        f"{' (required)' if name in required else ''}<td>{escape(field.get('description', ''))}"
        for name, field in schema.get("properties", {}).items()
    ]
    return f"<table><tr><th>field<th>type<th>{''.join(rows)}</table>" if rows else ""


def kind(schema: dict) -> str:
    """A field's type in a few words.

    Example: kind({"type": "integer", "minimum": 1}) == "integer >= 1"
    """
    if "anyOf" in schema:
        kinds = [kind(one) for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {kind(schema.get('items', {}))}"
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    told = {name: schema[name] for name in signs if abs(schema.get(name, HUGE)) < HUGE}
    bounds = [f"{signs[name]} {bound:g}" for name, bound in told.items()]
    return " ".join([schema.get("type", "any"), *bounds])
