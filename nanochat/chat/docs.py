"""The API's description as plain text.

FastAPI's viewers load scripts from another site, which could read the conversations that the chat
page keeps in the browser.
"""

LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def describe(openapi: dict) -> str:
    """An OpenAPI document's addresses, the fields they take, and the statuses they return."""
    lines = ["nanochat API; as data: /openapi.json"]
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            lines += ["", "", f"{method.upper()} {path}", operation["description"], ""]
            for content in operation.get("requestBody", {}).get("content", {}).values():
                schema = openapi["components"]["schemas"][type_name(content["schema"])]
                for name, field in schema["properties"].items():
                    required = " (required)" if name in schema.get("required", ()) else ""
                    text = f"{type_name(field)}{required}. {field.get('description', '')}"
                    lines.append(f"    {name:22} {text}")
            for status, response in operation["responses"].items():
                lines.append(f"  {status} {response['description']}")
    return "\n".join(lines) + "\n"


def type_name(schema: dict) -> str:
    """A field's type in a few words: "integer >= 1 or string"."""
    if "anyOf" in schema:
        return " or ".join(type_name(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    items = f" of {type_name(schema['items'])}" if "items" in schema else ""
    limits = [f" {sign} {schema[name]:g}" for name, sign in LIMITS.items() if name in schema]
    return schema.get("type", "any") + items + "".join(limits)
