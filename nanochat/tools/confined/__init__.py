"""What runs inside the sandbox: imports the standard library alone."""
