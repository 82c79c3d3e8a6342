def render(checkpoint, parity=None):
    return f"# {checkpoint.name}\n{parity}\n"
