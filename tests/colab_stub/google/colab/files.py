from pathlib import Path


def download(filename: str) -> None:
    print(f"downloaded {Path(filename).name}, {Path(filename).stat().st_size} bytes")
